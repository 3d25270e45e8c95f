"""The Session protocol: a model bound to a batch of rows, in seven calls.

Shape legend of the house: B batch, W nodes, T tokens, L layers, H query heads, G key heads, D head width,
M model width, V vocabulary.

Contracts, each a property test in `tests/models/contract.py` (specs: decode, section 6):
    C1  `forward` changes nothing observable
    C2  a node's output depends only on its ancestors and positions, never on its siblings
    C3  `commit(path)` then `forward(x)` equals `prefill(ids)` then `forward(x)`
    C4  the rows of a `fork` evolve independently
    C5  pending token: committed KV == ids - 1; the pending token is always node 0 of the next forest
    C6  padding nodes and rows without nodes are inert
    C7  where `caps.chain_exact` / `caps.tree_exact` is "bits", logits are bit-equal for equal (token, position, past)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .card import Keeps

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .tier import CacheSpec

    Ints = npt.NDArray[np.int32]
    Floats = npt.NDArray[np.float32]
    Bools = npt.NDArray[np.bool_]

ROOT = -1
"""Parent of a node that hangs off the committed prefix."""

PAD = -2
"""Parent of a padding node: never computed, its outputs are unspecified."""


@dataclass(frozen=True, slots=True)
class Caps:
    """What a session can do.

    tree         several nodes may share a parent
    crop         committed tokens can be taken back one by one; a row can always be emptied
    fork         rows can be duplicated, reordered and dropped
    embeds       nodes may carry input embeddings in place of tokens
    hidden       layers whose hidden states can be asked for; 0 is the embedding, num_layers the last, before the norm
    layers       `Nodes.layers` may be a proper slice
    visible      `Nodes.visible` may override ancestors-or-self
    recurrent    holds state that cannot be cropped: drafts are verified from a snapshot and replayed
    num_layers   layers of the model, which name its hidden states; 0 where none can be asked for
    max_width    most nodes a row may have in one forward
    context      most tokens a row may hold
    chain_exact  promise of a chain of drafts against width-1 decoding on this session
    tree_exact   the same for a forest; weaker than chain_exact means: confirm the accepted path with a chain pass
    """

    tree: bool
    crop: bool
    fork: bool
    embeds: bool
    hidden: bool
    layers: bool
    visible: bool
    recurrent: bool
    num_layers: int
    max_width: int
    context: int
    chain_exact: Keeps
    tree_exact: Keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """A forest per row to run on top of the committed prefix.

    tokens     [B, W] int32 token ids (ignored where `embeds` is given)
    parents    [B, W] int32: index of the parent node in the row, ROOT or PAD; a parent precedes its children, and
               padding stands at the end of a row
    positions  [B, W] int32, default: committed length + depth
    visible    [B, W, W] bool, default: ancestors or self
    embeds     [B, W, M] float32 input embeddings
    layers     (low, high): run only these layers, `embeds` being the input of layer `low`
    """

    tokens: "Ints"
    parents: "Ints"
    positions: "Ints | None" = None
    visible: "Bools | None" = None
    embeds: "Floats | None" = None
    layers: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Want:
    """What a forward has to hand out. `hidden` names layers: 0 the embedding, num_layers the last, before the norm."""

    logits: bool = True
    hidden: tuple[int, ...] = ()


class Step(Protocol):
    """Outputs of one forward. Valid until the session's next forward; copy what has to live longer."""

    @property
    def logits(self) -> "Floats":
        """[B, W, V] float32. Rows of padding nodes are unspecified."""
        ...

    @property
    def argmax(self) -> "Ints":
        """[B, W] int32, the lowest id among equals; cheaper than `logits` where the backend can."""
        ...

    def top(self, count: int) -> "tuple[Ints, Floats]":
        """The `count` best ids and their logits, each [B, W, count], best first, ties by the lower id."""
        ...

    def hidden(self, layer: int) -> "Floats":
        """[B, W, M] float32 hidden states of a layer named in `Want.hidden`."""
        ...


class Session(Protocol):
    """A model bound to a batch of B rows."""

    @property
    def caps(self) -> Caps: ...

    @property
    def vocab(self) -> int:
        """Width of the logits; may exceed the tokenizer's size."""
        ...

    @property
    def lengths(self) -> tuple[int, ...]:
        """Committed tokens per row; KV exists for exactly these."""
        ...

    def prefill(self, prompts: Sequence[Sequence[int]], *, last: bool = False) -> "Floats | None":
        """Commit `prompts[b]` to row b (an empty list leaves a row as it is).

        The caller keeps the pending token back. With `last`, returns the logits [B, V] after each row's last token
        (zeros for rows given nothing). Raises PromptError where a row would outgrow its capacity.
        """
        ...

    def forward(self, nodes: Nodes, want: Want = Want()) -> Step:
        """Run a forest speculatively: `lengths` and every later result stay as they were."""
        ...

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Make the path of node indices of the last forward, root to leaf, part of each row; [] commits nothing."""
        ...

    def crop(self, lengths: Sequence[int]) -> None:
        """Take rows back to `lengths`; 0 empties a row, which always works.

        Raises CapsError for another length where the session cannot; ValueError above the present length.
        """
        ...

    def fork(self, rows: Sequence[int]) -> "Session":
        """A session whose row i is a copy of row `rows[i]`; drops the last forward."""
        ...

    def embed(self, tokens: "Ints") -> "Floats":
        """Input embeddings [..., M] of token ids [...]; a mixture is a weighted sum of them."""
        ...

    def head(self, hidden: "Floats") -> "Floats":
        """Final norm and output projection: [..., M] hidden states to [..., V] logits."""
        ...

    def room(self) -> tuple[int, ...]:
        """Tokens each row may commit in one step before its cache changes form (seals a block, is full).

        A step that stays within it sees the same cache as one-token steps would: the loop trims drafts to it, which is
        what makes compression and speculation compose exactly (specs: cache, section 4.4).
        """
        ...

    def cache_bytes(self) -> dict[str, int]:
        """Bytes of the live KV storages by part: payload, scales, positions, open, ..."""
        ...


class Model(Protocol):
    """A loaded model that can be bound to a batch."""

    @property
    def name(self) -> str: ...

    @property
    def backend(self) -> str:
        """ "table", "hf" or "native"."""
        ...

    @property
    def vocab(self) -> int: ...

    @property
    def context(self) -> int:
        """Most tokens a row may hold."""
        ...

    @property
    def eos(self) -> frozenset[int]:
        """Ids that end a text."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of the weights and of what changes arithmetic: equal fingerprints give equal logits."""
        ...

    @property
    def origin(self) -> str:
        """Hex digest of the files the model was read from: the same on every backend and in every number form.

        What is trained on a model belongs to its origin. A model without files gives its fingerprint.
        """
        ...

    def weight_bytes(self) -> int:
        """Bytes of the live weight storages, each counted once."""
        ...

    def open(self, batch: int, capacity: int, cache: "CacheSpec | None" = None) -> Session:
        """A session of `batch` empty rows that hold up to `capacity` tokens each, in the cache form `cache`."""
        ...
