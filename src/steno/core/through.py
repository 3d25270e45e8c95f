"""Models and sessions around others that pass every call on: a wrapper overrides what it changes, and nothing else."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .session import Caps, Model, Nodes, Session, Step, Want

if TYPE_CHECKING:
    from .session import Floats, Ints


class ThroughModel:
    """A model around `model`; how it opens its sessions is its own."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def backend(self) -> str:
        return self.model.backend

    @property
    def vocab(self) -> int:
        return self.model.vocab

    @property
    def context(self) -> int:
        return self.model.context

    @property
    def eos(self) -> frozenset[int]:
        return self.model.eos

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint

    @property
    def origin(self) -> str:
        return self.model.origin

    def weight_bytes(self) -> int:
        return self.model.weight_bytes()


class ThroughSession:
    """A session around `inner`; what it does with prompts and forks is its own."""

    def __init__(self, inner: Session) -> None:
        self.inner = inner

    @property
    def caps(self) -> Caps:
        return self.inner.caps

    @property
    def vocab(self) -> int:
        return self.inner.vocab

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.inner.lengths

    def forward(self, nodes: Nodes, want: Want = Want()) -> Step:
        return self.inner.forward(nodes, want)

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        self.inner.commit(paths)

    def crop(self, lengths: Sequence[int]) -> None:
        self.inner.crop(lengths)

    def embed(self, tokens: "Ints") -> "Floats":
        return self.inner.embed(tokens)

    def head(self, hidden: "Floats") -> "Floats":
        return self.inner.head(hidden)

    def room(self) -> tuple[int, ...]:
        return self.inner.room()

    def cache_bytes(self) -> dict[str, int]:
        return self.inner.cache_bytes()
