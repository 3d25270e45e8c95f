"""Card: what a method is, what it keeps, and what it needs. Read from source, never executed to be listed."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Keeps(StrEnum):
    """What a knob leaves unchanged, strongest first.

    bits    logits are bit-identical to the baseline of the same backend
    tokens  the same token ids, greedy or sampled with the same seed
    law     the same output distribution
    near    approximate; measured, never promised
    """

    BITS = "bits"
    TOKENS = "tokens"
    LAW = "law"
    NEAR = "near"

    @property
    def rank(self) -> int:
        """0 for the strongest promise, 3 for the weakest."""
        return list(Keeps).index(self)

    def covers(self, asked: "Keeps") -> bool:
        """True where a promise of this level satisfies a demand for `asked`."""
        return self.rank <= asked.rank


def weakest(levels: Iterable[Keeps]) -> Keeps:
    """The level of a composition: the weakest of its parts; `bits` for an empty one.

    >>> weakest([Keeps.BITS, Keeps.LAW, Keeps.TOKENS])
    <Keeps.LAW: 'law'>
    """
    return max(levels, key=lambda level: level.rank, default=Keeps.BITS)


@dataclass(frozen=True, kw_only=True)
class Card:
    """The card of one method. Every value is a literal, so the index can read it without an import.

    paper     exact title of the paper, or "" for what has none
    keeps     the promise
    task      True for knobs that say *what* is asked for (temperature, top-p): the baseline carries them too
    needs     knob names or prefixes of which at least one must be in the plan ("decode.accept")
    breaks    knob names or prefixes that must not stand beside this one ("decode.draft": any other drafter)
    backends  backends it runs on
    requires  extras of the distribution it needs ("hf")
    caps      session capabilities it needs, as field names of `Caps` ("tree", "hidden")
    """

    paper: str = ""
    keeps: Keeps | str = Keeps.NEAR
    task: bool = False
    needs: tuple[str, ...] = ()
    breaks: tuple[str, ...] = ()
    backends: tuple[str, ...] = ("table", "hf", "native")
    requires: tuple[str, ...] = ()
    caps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "keeps", Keeps(self.keeps))
