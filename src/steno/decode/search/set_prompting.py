"""Set-based prompting: the items of a list are read as a set, so that their order cannot matter.

Section 3 of the paper. Items do not see one another and all begin at the same position, that of what stands before the
set and n; what follows begins behind the longest of them and sees all. So keys and values of the items, and with them
everything that follows, are the same for every order, up to the order in which attention adds up. Items are therefore
put into one order, that of their ids, and equal they are to the last bit.

A set is two or more lines in a row that begin with `bullet`. The rest is decoded greedily.

What differs from the paper: sets are told by bullets in place of markers that stand for no text; there is one order of
summation. A set has to fit one forward, and its lines have to end with tokens of their own: in many vocabularies a
blank line right behind a list is one token with the end of its last line, which then differs from order to order.
Without ids to text, or without a set, it is greedy decoding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from steno.core import ROOT, Card, Nodes, Session
from steno.core.errors import CapsError

from .._text import Decoder, borders
from ..base import Floats, Ground, Hypothesis, SearchKnob

CARD = Card(
    paper="Set-Based Prompting: Provably Solving the Language Model Order Dependency Problem",
    keeps="near",
    breaks=("decode.search", "decode.draft", "decode.accept"),
    caps=("fork", "visible"),
)

Items = list[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class SetPrompting(SearchKnob):
    """One item is ordinary text."""

    card: ClassVar[Card] = CARD

    bullet: str = "- "

    def search(self, ground: Ground) -> list[Hypothesis]:
        reader = Reader(ground)
        prompt = ground.request.prompt
        for items in sections(prompt, self.bullet, ground.text):
            reader.read(sorted(items))
        text: list[int] = []
        total = 0.0
        while True:
            law = ground.law(reader.logits, [*prompt, *text])
            token = int(law.argmax())
            text.append(token)
            total += float(law[token])
            if token in ground.ends or len(text) == ground.limit:
                return [Hypothesis(tuple(text), total / len(text))]
            reader.read([(token,)])


class Reader:
    """A session that takes items side by side; `logits` [V] follow the last token, where that stood by itself."""

    def __init__(self, ground: Ground) -> None:
        self.session: Session = ground.open(())
        self.logits: Floats = np.zeros(self.session.vocab, np.float32)
        self._ground = ground
        self._position = 0

    def read(self, items: Items) -> None:
        """Commit one item as text, in pieces, or several of them as a set, in one forward."""
        if len(items) > 1:
            self._run([token for item in items for token in item], items)
            self._position += max(map(len, items))
            return
        (text,) = items
        while text:
            piece = text[: min(self.session.caps.max_width, self.session.room()[0])]
            self._run(piece, [piece])
            self._position += len(piece)
            text = text[len(piece) :]

    def _run(self, tokens: Sequence[int], items: Items) -> None:
        size, session = len(tokens), self.session
        most = min(session.caps.max_width, session.room()[0])
        if size > most:
            raise CapsError(
                f"a set of {size} tokens has to fit one forward, which takes {most} here. Shorten its items."
            )
        positions = np.concatenate([np.arange(len(item)) for item in items]) + self._position
        owner = np.repeat(np.arange(len(items)), [len(item) for item in items])
        sees = np.tri(size, dtype=bool) & (owner[:, None] == owner)
        nodes = Nodes(
            tokens=np.array([tokens], np.int32),
            parents=np.arange(ROOT, size - 1, dtype=np.int32)[None],
            positions=positions.astype(np.int32)[None],
            visible=sees[None],
        )
        self.logits = self._ground.forward(session, nodes).logits[0, -1].copy()
        session.commit([list(range(size))])


def sections(prompt: Sequence[int], bullet: str, text: Decoder | None) -> Iterator[Items]:
    """The prompt in order: [text] or the items of a set. It never ends with a set: what follows one has to see it."""
    if text is None:
        yield [tuple(prompt)]
        return
    lines = [(tokens, line.startswith(bullet)) for tokens, line in _lines(prompt, text)]
    plain: tuple[int, ...] = ()
    items: Items = []
    for tokens, listed in [*lines, ((), False)]:
        if listed:
            items.append(tokens)
            continue
        if len(items) > 1 and tokens:
            yield from [[plain]] if plain else []
            yield items
            plain = ()
        else:
            plain += tuple(token for item in items for token in item)
        items = []
        plain += tokens
    yield [plain]


def _lines(prompt: Sequence[int], text: Decoder) -> Iterator[tuple[tuple[int, ...], str]]:
    """Lines as (the tokens whose last character is in it, its text)."""
    ends, whole = borders(text, prompt)[1:], text(prompt)
    start = 0
    done = 0
    for line in whole.splitlines(keepends=True):
        start += len(line)
        held = done
        while held < len(prompt) and ends[held] <= start:
            held += 1
        yield tuple(prompt[done:held]), line
        done = held
