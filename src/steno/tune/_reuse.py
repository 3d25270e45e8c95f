"""The comparison of reuse methods: a text woven from known pieces beside the same text computed from its first token.

An edit method gets a text whose middle has changed. A method for pieces that were computed apart gets the text as a
shared prefix and four contexts, each computed right behind the prefix. A method for streams gets the first half as a
source that arrives in four parts, and the second half as the answer, a quarter after each. What follows is scored both
ways.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median
from time import perf_counter

import numpy as np

from steno.core import Keeper, Model, Nodes, Session
from steno.core.errors import CapsError
from steno.reuse import Piece, ReuseKnob, Scene
from steno.reuse.pie import Edit, edited

TAIL, EDIT, PREFIX, CONTEXTS = 64, 24, 32, 4
ROOM = 512
"""Positions beyond the text, for methods that leave some out."""
Row = dict[str, str]


def compare(
    model: Model, knobs: Sequence[tuple[str, ReuseKnob]], prompts: Sequence[Sequence[int]]
) -> tuple[str, str, str, list[Row]]:
    """(verdict, claim, what was measured, table) over the prompts that are long enough."""
    long = [list(p) for p in prompts if len(p) >= 4 * TAIL]
    if not long:
        return "not testable here", "", f"no prompt has {4 * TAIL} tokens", []
    table: list[Row] = []
    told: list[str] = []
    for name, knob in knobs:
        plain_s: list[float] = []
        woven_s: list[float] = []
        kl: list[float] = []
        same: list[bool] = []
        computed = total = 0
        for ids in long:
            body, tail = ids[: -TAIL - 1], ids[-TAIL - 1 : -1]
            pieces = SCENES[knob.scene](model, body)
            start = perf_counter()
            session = model.open(1, len(ids))
            session.prefill([body])
            plain_s.append(perf_counter() - start)
            start = perf_counter()
            woven = knob.weave(model, pieces, capacity=len(ids) + ROOM)
            woven_s.append(perf_counter() - start)
            truth, got = laws(session, tail), laws(woven.session, tail)
            kl += (np.exp(truth) * (truth - got)).sum(-1).tolist()
            same += (truth.argmax(-1) == got.argmax(-1)).tolist()
            computed += woven.computed
            total += woven.computed + woven.reused
        ratio = median(w / p for w, p in zip(woven_s, plain_s, strict=True))
        row = {
            "method": name,
            "computed": f"{100 * computed / total:.1f} %",
            "time of plain": f"{100 * ratio:.0f} %",
            "KL per token": f"{fmean(kl):.3g}",
            "99th percentile": f"{np.quantile(kl, 0.99):.3g}",
            "same first choice": f"{100 * fmean(same):.2f} %",
        }
        table.append(row)
        told.append(
            f"{name}: {row['computed']} of the tokens computed in {row['time of plain']} of the time, KL "
            f"{row['KL per token']} nats per token, the same first choice on {row['same first choice']}"
        )
    claimed = CLAIMS[knobs[0][1].scene]
    return "measured", claimed, "; ".join(told), table


def keeping(model: Model, capacity: int) -> Keeper:
    session = model.open(1, capacity)
    if not isinstance(session, Keeper):
        raise CapsError(f"the state of {model.name} cannot be put together from pieces. Use an attention model.")
    return session


def changed(model: Model, body: Sequence[int]) -> list[Piece]:
    """The pieces of a text whose middle was not there before."""
    middle = len(body) // 2
    old = [*body[:middle], *body[middle + EDIT :]]
    session = keeping(model, len(old))
    session.prefill([old])
    return edited(session, 0, old, [Edit(middle, middle, tuple(body[middle : middle + EDIT]))])


def apart(model: Model, body: Sequence[int]) -> list[Piece]:
    """A prefix, and contexts that have seen nothing else."""
    bounds = np.linspace(PREFIX, len(body), CONTEXTS + 1).astype(int)
    out: list[Piece] = []
    for low, high in zip((0, *bounds[:-1]), bounds, strict=True):
        session = keeping(model, PREFIX + int(high - low))
        session.prefill([[*body[:PREFIX], *(body[low:high] if low else [])]])
        keys, values = session.read(0, PREFIX if low else 0)
        out.append(Piece(tokens=tuple(body[low:high]), keys=keys, values=values, at=PREFIX if low else 0))
    return out


def streamed(model: Model, body: Sequence[int]) -> list[Piece]:
    """Source and answer by turns; nothing is known."""
    half = len(body) // 2
    source = np.linspace(0, half, CONTEXTS + 1).astype(int)
    answer = np.linspace(half, len(body), CONTEXTS + 1).astype(int)
    turns = zip(pairwise(source), pairwise(answer), strict=True)
    return [Piece(tokens=tuple(body[low:high])) for turn in turns for low, high in turn]


SCENES = {Scene.EDIT: changed, Scene.APART: apart, Scene.STREAM: streamed}
CLAIMS = {
    Scene.EDIT: "an edit in the middle: most of the text is not computed again, and what follows is scored alike",
    Scene.APART: f"{CONTEXTS} contexts computed apart behind a shared prefix: most of the text is not computed again, "
    "and what follows is scored alike",
    Scene.STREAM: f"a source in {CONTEXTS} parts, answered while it arrives: nothing is computed twice, and what "
    "follows is scored as after reading all of it first",
}


def laws(session: Session, tail: Sequence[int]) -> np.ndarray:
    """Log-probabilities [T, V] behind each token of a tail."""
    chain = np.array([tail], np.int32)
    parents = np.arange(-1, len(tail) - 1, dtype=np.int32)[None]
    logits = session.forward(Nodes(tokens=chain, parents=parents)).logits[0].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
