"""Who sees whom in one forward of the hf backend, and attention registered with transformers under the name "steno".

transformers asks a registered *mask function* for each kind of mask a model uses (full, sliding, chunked) and calls a
registered *attention function* in every layer. So the model's own code says which layer looks how far, and hybrids need
no table here. Positions, never slot numbers, decide windows; masks are additive floats, because the eager path adds
them (specs: decode, pitfalls P5 and P6).

Shapes: B batch, W nodes, S slots of the open buffer, H query heads, G key heads, D head width.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from steno.core.errors import CapsError

NAME = "steno"
"""The name both functions are registered under."""

CURRENT: ContextVar["Sight | None"] = ContextVar("sight", default=None)
"""The sight of the forward in progress; None outside sessions, where attention is plain causal SDPA."""

Sees = Callable[[Tensor, Tensor], "Tensor | None"]


class Reach(NamedTuple):
    """How far back a layer looks, in tokens; 0 means no limit of that kind.

    window  only keys less than this far back
    chunk   only keys of the query's own chunk of this size
    """

    window: int = 0
    chunk: int = 0

    def binds(self, capacity: int) -> bool:
        """Whether it hides anything among `capacity` tokens."""
        return 0 < self.window < capacity or 0 < self.chunk < capacity


@dataclass(kw_only=True)
class Sight:
    """What the nodes of one forward see.

    committed  [B] tokens in the open buffer; node i of row b stands at slot committed[b] + i
    origin     [B] position of the token in slot 0
    positions  [B, W] of the nodes
    lineage    [B, W, W] bool: row may see column
    view       slots handed to attention
    sees       a cache form's own rule
    sealed     [B, Z] positions of materialised sealed tokens that stand before the open slots, -1 where empty
    """

    committed: Tensor
    origin: Tensor
    positions: Tensor
    lineage: Tensor
    view: int
    sees: Sees | None = None
    sealed: Tensor | None = None
    masks: dict[tuple[Reach, torch.dtype], Tensor] = field(default_factory=dict[tuple[Reach, torch.dtype], Tensor])

    def mask(self, dtype: torch.dtype, window: int = 0, chunk: int = 0) -> Tensor:
        """[B, 1, W, (Z +) S] additive mask; 0 means no window and no chunks."""
        reach = Reach(window, chunk)
        key = (reach, dtype)
        if key not in self.masks:
            batch, width = self.positions.shape
            slots = torch.arange(self.view, device=self.positions.device)
            nodes = self.committed[:, None] + slots[None, :width]
            visible = (slots < self.committed[:, None])[:, None].repeat(1, width, 1)
            visible.scatter_(2, nodes[:, None].expand(batch, width, width), self.lineage)
            where = (self.origin[:, None] + slots).scatter_(1, nodes, self.positions)
            visible &= self._within(where, reach)
            if self.sealed is not None:
                visible = torch.cat([(self.sealed >= 0)[:, None] & self._within(self.sealed, reach), visible], 2)
            self.masks[key] = additive(visible, dtype, reach)
        return self.masks[key]

    def beyond(self, where: Tensor, reach: Reach) -> Tensor:
        """[B, 1, W, Z] additive mask over sealed tokens at positions `where` [B, Z], -1 where empty."""
        return additive((where >= 0)[:, None] & self._within(where, reach), torch.float32, reach)

    def _within(self, where: Tensor, reach: Reach) -> Tensor:
        """[B, W, S] bool: what windows, chunks and the cache form leave of keys at positions `where` [B, S]."""
        query, key = self.positions[:, :, None], where[:, None]
        out = torch.ones_like(query - key, dtype=torch.bool)
        if reach.window:
            out &= query - key < reach.window
        if reach.chunk:
            out &= query // reach.chunk == key // reach.chunk
        rule = self.sees(query, key) if self.sees else None
        return out if rule is None else out & rule


class Handle:
    """What the cache layer returns in place of keys when part of the past is sealed: it owns attention.

    `watch`, where a tier observes queries, is shown those of the forward and their scale.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        behind: "Callable[[Tensor, Reach, float], tuple[Tensor, Tensor]]",
        watch: "Callable[[Tensor, float], None] | None" = None,
    ):
        self.keys, self.values, self.behind, self.watch = keys, values, behind, watch
        self.shape, self.dtype, self.device = keys.shape, keys.dtype, keys.device

    def attend(self, q: Tensor, mask: Tensor, scale: float) -> Tensor:
        """Log-sum-exp merge of open buffer and sealed tokens: [B, H, W, D] in, [B, W, H, D] out."""
        reach = getattr(mask, "steno_reach", None)
        if reach is None:
            raise CapsError("this model alters attention masks on their way, so it takes no cache form. Use none.")
        if self.watch is not None:
            self.watch(q, scale)
        near, near_lse = attend_lse(q, self.keys, self.values, mask, scale)
        far, far_lse = self.behind(q, reach, scale)
        # A row sees at least itself, so near_lse is finite; far_lse may be -inf, and then `near` comes out unchanged.
        top = torch.maximum(near_lse, far_lse)
        a, b = torch.exp(near_lse - top)[..., None], torch.exp(far_lse - top)[..., None]
        return ((a * near + b * far) / (a + b)).transpose(1, 2).to(q.dtype).contiguous()


def additive(visible: Tensor, dtype: torch.dtype, reach: Reach) -> Tensor:
    """[B, W, S] bool as an additive [B, 1, W, S] mask that remembers its reach."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    mask = mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
    mask.steno_reach = reach  # type: ignore[attr-defined]
    return mask


def attend_lse(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of q [B, H, W, D] over k, v [B, G, S, D] in float32, and its log-sum-exp [B, H, W].

    A fully masked row comes out as 0 with -inf.
    """
    batch, heads, width, dim = q.shape
    groups = k.shape[1]
    q = (q.float() * scale).reshape(batch, groups, -1, dim)
    scores = (q @ k.float().transpose(2, 3)).view(batch, groups, -1, width, k.shape[2])
    scores = scores.masked_fill(mask[:, :, None] < 0, -torch.inf).view(batch, groups, -1, k.shape[2])
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - torch.where(lse.isinf(), 0.0, lse)[..., None])
    out = weights @ v.float()
    return out.view(batch, heads, width, v.shape[3]), lse.view(batch, heads, width)


def _mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    local_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    use_vmap: bool = False,
    config: object = None,
    **rest: object,
) -> Tensor | None:
    """The mask function: signature by transformers."""
    sight = CURRENT.get()
    if sight is None:
        sizes = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length, "local_size": local_size}
        offsets = {"q_offset": q_offset, "kv_offset": kv_offset, "use_vmap": use_vmap}
        # Capped scores and sinks have no kernel with a causal flag, so the mask is always spelled out.
        return sdpa_mask(**sizes, **offsets, **{**rest, "allow_is_causal_skip": False})  # type: ignore[arg-type]
    if use_vmap:
        raise CapsError(
            "this model lays an overlay of its own over causal attention, which the hf backend cannot follow"
        )
    size = local_size or 0
    chunked = size and size == getattr(config, "attention_chunk_size", None) != getattr(config, "sliding_window", None)
    return sight.mask(dtype, chunk=size) if chunked else sight.mask(dtype, window=size)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: "Tensor | Handle",
    value: Tensor | None,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest: object,
) -> tuple[Tensor, None]:
    """The attention function: signature by transformers; `softcap` caps scores, `s_aux` [H] holds sink logits."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(key, Handle):
        if softcap is not None or s_aux is not None:
            what = "caps attention scores" if softcap is not None else "has attention sinks"
            raise CapsError(f"this model {what}, which no cache form can merge over. Run it without a cache knob.")
        assert attention_mask is not None
        return key.attend(query, attention_mask, scale), None
    assert value is not None
    if softcap is None and s_aux is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scale, **rest)  # type: ignore[arg-type]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        low = torch.finfo(scores.dtype).min
        blocked = ~attention_mask if attention_mask.dtype == torch.bool else attention_mask < 0
        scores = scores.masked_fill(blocked, low)
    if s_aux is not None:
        sink = s_aux.view(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
        scores = torch.cat([scores, sink], -1)
    weights = torch.softmax(scores.float(), -1).to(query.dtype)[..., : value.shape[2]]
    return (weights @ value).transpose(1, 2).contiguous(), None


ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _mask)
ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
