"""A transformers causal LM as a `core.Model`: probed once against its own forward, then bound to sessions."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, LinearAttentionCacheLayerMixin
from transformers.utils import logging as chatter

from steno.core import PAD, ROOT, Keeps, Nodes, Want
from steno.core.errors import CapsError, ModelError, PromptError, StenoError
from steno.core.tier import CacheSpec, KVShape, Rope

from ._origin import files_digest
from ._recurrent import RecurrentSession
from ._rope import find_rope
from ._session import WIDEST, SlotSession
from ._sight import CURRENT, NAME, Sight
from ._slots import SlotCache
from ._step import HFStep

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

VECTOR = 64
"""Elements that torch's vectorised CPU loops take at once, at most: two AVX-512 registers of bfloat16."""

GRAIN = 32768
"""Elements below which torch does not split elementwise work among threads."""

UNBOUNDED = 1 << 20
"""Context of a model whose config names none."""

WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size")
"""Config fields of windows; a model that asks for its masks applies them itself, another is refused."""


class HFModel:
    """See `core.Model`. `folder` holds its files; `width` is the pinned query width, 0 where shapes are free."""

    backend = "hf"

    def __init__(self, net: PreTrainedModel, folder: Path, width: int = 0) -> None:
        self.net, self.folder, self.name, self.width = net, folder, folder.name, width
        self.config = net.config.get_text_config()
        takes = inspect.signature(net.forward).parameters
        self.embeds = "inputs_embeds" in takes
        self._takes = frozenset(takes)
        self._past = "cache_params" if "cache_params" in takes else "past_key_values"
        self._layers = _find_layers(net, int(self.config.num_hidden_layers))
        self.recurrent = any(
            isinstance(layer, LinearAttentionCacheLayerMixin) for layer in DynamicCache(config=net.config).layers
        )
        self._registered = False
        self._lanes: dict[tuple[int, int, bool, int], int] = {}
        self._tail: list[nn.Module] = []
        self._shape: tuple[int, int] | None = None
        self._probe()

    @property
    def depth(self) -> int:
        """Layers whose hidden states can be had: all, or 0 where the last one could not be followed to the logits."""
        return len(self._layers) if self._tail else 0

    @property
    def device(self) -> torch.device:
        return self.net.device

    @property
    def vocab(self) -> int:
        return int(self.config.vocab_size)

    @property
    def context(self) -> int:
        limits = [getattr(self.config, key, None) for key in ("max_position_embeddings", "n_positions", "n_ctx")]
        rope = getattr(self.config, "rope_parameters", None) or {}
        if rope.get("rope_type") in ("dynamic", "longrope"):
            # Beyond this length the rotation of every token depends on the longest row of the batch.
            limits.append(rope.get("original_max_position_embeddings"))
        return min((int(n) for n in limits if n), default=UNBOUNDED)

    @property
    def eos(self) -> frozenset[int]:
        settings = self.net.generation_config
        ids = settings.eos_token_id if settings is not None else None
        ids = self.config.eos_token_id if ids is None else ids
        return frozenset() if ids is None else frozenset(ids if isinstance(ids, list) else [ids])

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        how = (torch.__version__, transformers.__version__, self.device.type, torch.get_num_threads(), self.width)
        digest = blake2b(repr(how).encode() + self.config.to_json_string().encode(), digest_size=16)
        for name, tensor in sorted(self.net.state_dict().items()):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def origin(self) -> str:
        return files_digest(self.folder)

    def weight_bytes(self) -> int:
        held = [*self.net.parameters(), *self.net.buffers()]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())

    def open(self, batch: int, capacity: int, cache: CacheSpec | None = None) -> "SlotSession | RecurrentSession":
        capacity = min(capacity, self.context)
        if self.recurrent:
            if cache is not None:
                raise CapsError(f"{self.name} keeps a state of fixed size and no KV, so it takes no cache form")
            return RecurrentSession(self, batch, capacity)
        if not self.width:
            return self._bind(batch, capacity, cache, 0)
        key = (batch, capacity, cache is not None, torch.get_num_threads())
        known = key in self._lanes
        for width in [self._lanes[key]] if known else self._widths(batch):
            session = self._bind(batch, capacity, cache, width)
            if known or session.lanes_agree():
                self._lanes[key] = width
                session.chain_exact = Keeps.BITS
                return session
        return self._bind(batch, capacity, cache, self.width)

    def rows(
        self, prompts: Sequence[Sequence[int]], lengths: "Sequence[int] | npt.NDArray[np.int64]", capacity: int
    ) -> "list[npt.NDArray[np.int64]]":
        """Prompts as arrays. Raises PromptError for a row that would outgrow `capacity`, and for unknown ids."""
        out = [np.asarray(p, np.int64).reshape(-1) for p in prompts]
        for b, row in enumerate(out):
            if lengths[b] + len(row) > capacity:
                came = f"row {b} would hold {lengths[b] + len(row)} tokens, its capacity is {capacity}"
                raise PromptError(f"{came}. Shorten the prompt or open the session larger.")
            self.check_ids(row)
        return out

    def check_ids(self, ids: "npt.NDArray[np.int64]") -> None:
        """Raise PromptError for an id outside the vocabulary."""
        bad = ids[(ids < 0) | (ids >= self.vocab)]
        if bad.size:
            raise PromptError(f"token id {bad[0]} is outside the vocabulary of {self.vocab}")

    def embed(self, tokens: Ints) -> Floats:
        """Input embeddings [..., M] of ids [...]."""
        if not self.embeds:
            raise CapsError(f"{self.name} takes no input embeddings")
        ids = np.asarray(tokens, np.int64)
        self.check_ids(ids)
        with torch.inference_mode():
            table = cast(nn.Module, self.net.get_input_embeddings())
            return table(torch.from_numpy(ids).to(self.device)).float().cpu().numpy()

    def head(self, hidden: Floats) -> Floats:
        """Logits [..., V] of last hidden states [..., M], taken before the final norm."""
        if not self._tail:
            raise CapsError(f"the output head of {self.name} could not be told apart from its layers")
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(hidden)).to(self.device, self.net.dtype)
            return self.finish(x).float().cpu().numpy()

    def run(
        self, ids: Tensor, embeds: Tensor | None, sight: Sight, cache: SlotCache, want: Want, *, asked: int
    ) -> HFStep:
        """One forward over the slot cache; outputs are cut to the first `asked` columns."""
        extra: dict[str, Tensor] = {"position_ids": sight.positions}
        if not self._registered:
            extra["attention_mask"] = sight.mask(self.net.dtype)
        token = CURRENT.set(sight)
        try:
            out, hidden = self.call(ids, embeds, want, cache, extra)
        finally:
            CURRENT.reset(token)
        cut = {layer: state[:, :asked] for layer, state in hidden.items()}
        return HFStep(out[:, :asked] if want.logits else None, cut)

    def call(
        self, ids: Tensor, embeds: Tensor | None, want: Want, cache: Cache | None, extra: Mapping[str, Tensor] = {}
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The transformers forward: (logits, hidden states by layer as `Want.hidden` counts them)."""
        source = {"input_ids": ids} if embeds is None else {"inputs_embeds": embeds.to(self.device, self.net.dtype)}
        past = {} if cache is None else {self._past: cache}
        few = {} if want.logits or "logits_to_keep" not in self._takes else {"logits_to_keep": 1}
        hidden: dict[int, Tensor] = {}
        with ExitStack() as hooks, torch.inference_mode():
            for layer in want.hidden:
                hooks.callback(self._watch(layer, hidden).remove)
            logits = self.net(**source, **past, **extra, **few, use_cache=cache is not None).logits
        return logits, hidden

    def _widths(self, batch: int) -> list[int]:
        """Pinned widths to measure, narrowest first: those whose elementwise work falls into whole vectors.

        On a CPU the last few elements of a tensor, or of a thread's share of it, go through scalar code, whose exp
        rounds otherwise: rarely enough to slip through a measurement.
        """
        sizes = {size for layer in self._layers for weight in layer.parameters() for size in weight.shape}
        sizes |= {self._shape[1]} if self._shape else set()

        def whole(width: int) -> bool:
            for count in (batch * width * size for size in sizes):
                shares = min(torch.get_num_threads(), -(-count // GRAIN))
                if count % (shares * VECTOR):
                    return False
            return True

        widths = range(self.width, WIDEST + 1)
        fit = [width for width in widths if self.device.type != "cpu" or whole(width)]
        return fit[:1] + [width for width in fit[1:] if width & (width - 1) == 0]

    def _bind(self, batch: int, capacity: int, form: CacheSpec | None, width: int) -> SlotSession:
        tier, size = None, capacity
        # A form that seals nothing within the capacity costs nothing: plain attention, under its own visibility.
        if form is not None and form.due(capacity):
            tier = form.open(self.kv_shape(batch, capacity))
            size = max(n - form.due(n) for n in range(capacity + 1))
        slots = SlotCache(
            batch=batch, layers=int(self.config.num_hidden_layers), size=size + width, capacity=capacity,
            tier=tier, handles=self._registered,
        )  # fmt: skip
        return SlotSession(self, capacity, form, slots, width)

    def _watch(self, layer: int, hidden: dict[int, Tensor]) -> "torch.utils.hooks.RemovableHandle":
        if not 0 <= layer <= len(self._layers) or not self._layers:
            raise CapsError(f"{self.name} has hidden states of layers 0 to {len(self._layers)}, got {layer}")

        def before(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            hidden[layer] = cast(Tensor, args[0] if args else kwargs["hidden_states"])

        def after(module: nn.Module, args: tuple[object, ...], out: object) -> None:
            hidden[layer] = cast(Tensor, out[0] if isinstance(out, tuple) else out)

        if layer == 0:
            return self._layers[0].register_forward_pre_hook(before, with_kwargs=True)
        return self._layers[layer - 1].register_forward_hook(after)

    def _ends_in(self, hidden: Tensor, logits: Tensor, atol: float) -> bool:
        """Whether the tail takes the last hidden states to the logits."""
        try:
            with torch.inference_mode():
                return torch.allclose(self.finish(hidden).float(), logits.float(), atol=atol)
        except (TypeError, RuntimeError):
            return False

    def finish(self, x: Tensor) -> Tensor:
        """Logits [..., V] of last hidden states [..., M] in the model's number form; gradients flow to the states."""
        for module in self._tail:
            x = module(x)
        # Cohere multiplies, Granite divides, Gemma caps.
        x = (
            x
            * (getattr(self.config, "logit_scale", None) or 1.0)
            / (getattr(self.config, "logits_scaling", None) or 1.0)
        )
        cap = getattr(self.config, "final_logit_softcapping", None)
        return torch.tanh(x / cap) * cap if cap else x

    def kv_shape(self, batch: int, capacity: int) -> KVShape:
        """What a tier of a session is told. Raises CapsError where layers differ."""
        if self._shape is None:
            raise CapsError(f"the layers of {self.name} keep KV of different shapes, so it takes no cache form")
        groups, dim = self._shape
        return KVShape(
            batch=batch, layers=int(self.config.num_hidden_layers), query_heads=int(self.config.num_attention_heads),
            key_heads=groups, head_dim=dim, capacity=capacity, dtype=self.net.dtype, device=self.device,
            rope=self.rope,
        )  # fmt: skip

    @cached_property
    def rope(self) -> Rope | None:
        """How the model turns its keys, where that could be seen."""
        with quiet():
            return find_rope(self.net, lambda ids, cache: self.call(ids, None, Want(logits=False), cache))

    def _probe(self) -> None:
        """Run a few tokens the model's own way and ours: what does not agree is refused, never served."""
        ids = (np.arange(6, dtype=np.int64) * 7919 + 13) % self.vocab
        last = len(self._layers)
        want = Want(hidden=(last,) if last else ())
        with quiet(), _tail_of(self.net, self._layers) as tail:
            batch = torch.from_numpy(ids[None]).to(self.device)
            reference, hidden = self.call(batch, None, want, None)
        truth = reference[0].float().cpu().numpy()
        if not np.isfinite(truth).all():
            raise ModelError(f"{self.name} gives logits that are not finite. Its weights are damaged: fetch it again.")
        if not self.recurrent:
            with quiet():
                self.net.set_attn_implementation(NAME)
            self._registered = self.net.config._attn_implementation == NAME
            if not self._registered and any(getattr(self.config, key, None) for key in WINDOWS):
                why = "looks back through a window that only its own code knows"
                raise ModelError(f"{type(self.net).__name__} {why}. Use another architecture.")
        try:
            with quiet():
                got = self._probe_session(ids)
        except StenoError as error:
            raise ModelError(f"{self.name} ({type(self.net).__name__}) does not run here: {error}") from None
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"{type(self.net).__name__} does not follow the pattern the hf backend needs: {why}"
            ) from None
        gap, spread = np.abs(got - truth[1:]), float(truth.std()) or 1.0
        exact = self.net.dtype in (torch.float32, torch.float64)
        if (gap.max() > 1e-2 * spread) if exact else (gap.mean() > 0.2 * spread):
            off = f"logits differ by {gap.max():.3g} (spread {spread:.3g}) from the model's own forward"
            raise ModelError(f"{type(self.net).__name__} does not fit the slot cache: {off}. Use another architecture.")
        self._tail = tail
        if not last or not self._ends_in(hidden[last], reference, 1e-3 * spread):
            self._tail = []

    def _probe_session(self, ids: "npt.NDArray[np.int64]") -> Floats:
        """Logits [5, V] after each of the 6 ids but the first: by prefill, a forest, its commit and a single node.

        Beside a longer row, which shows slots taken for positions and state kept outside the cache.
        """
        session = self.open(2, 16)
        text, other = [int(i) for i in ids], [int(i) for i in ids[::-1]]
        first = session.prefill([text[:2], [*other, *text[:3]]], last=True)
        assert first is not None
        out = [first[:1]]
        # Node 0 of the forest is a stranger, which the path 1, 2, 3 must not see.
        steps = [([text[0], *text[2:5]], [ROOT, ROOT, 1, 2], [1, 2, 3]), (text[5:], [ROOT], [0])]
        if not session.caps.tree or session.caps.max_width < 4:
            steps = [([token], [ROOT], [0]) for token in text[2:]]
        for tokens, parents, path in steps:
            rest = [PAD] * (len(tokens) - 1)
            both = np.array([parents, [ROOT, *rest]], np.int32)
            step = session.forward(Nodes(tokens=np.array([tokens, [text[3]] * len(tokens)], np.int32), parents=both))
            out.append(step.logits[0, path])
            session.commit([path, [0]])
        if isinstance(session, SlotSession):
            self._shape = session.kv_shape()
        return np.concatenate(out)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, notices or warnings from transformers inside."""
    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()


def _find_layers(net: nn.Module, count: int) -> Sequence[nn.Module]:
    """The decoder layers: the outermost list of as many modules as the config names layers."""
    for module in net.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    return []


@contextmanager
def _tail_of(net: nn.Module, layers: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """The outermost modules that run after the last layer, in order, filled in while a forward runs inside."""
    tail: list[nn.Module] = []
    if not layers:
        yield tail
        return
    depth = 0
    over = False

    def enter(module: nn.Module, args: object) -> None:
        nonlocal depth
        if over:
            if depth == 0:
                tail.append(module)
            depth += 1

    def leave(module: nn.Module, args: object, out: object) -> None:
        nonlocal depth, over
        if over and depth:
            depth -= 1
        if module is layers[-1]:
            over = True

    with ExitStack() as hooks:
        for module in net.modules():
            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        yield tail
