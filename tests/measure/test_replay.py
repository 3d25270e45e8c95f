"""Replay: through the loop, with any drafter, exactly the recorded ids come out, and every forward was paid for."""

import numpy as np
import pytest

from steno.cache.half import Half
from steno.core import Nodes, Plan, knob_class
from steno.core.errors import DataError
from steno.decode.base import Request
from steno.decode.loop import Loop
from steno.measure.replay import Recording, Replayed
from steno.models import ModelSpec, load

VOCAB = 24


def recordings(count=4, repeat=True):
    """Texts that repeat themselves, so that drafters find something."""
    rng = np.random.default_rng(7)
    phrase = rng.integers(0, VOCAB, 9).tolist()
    out = []
    for i in range(count):
        prompt = [*rng.integers(0, VOCAB, 3 + i).tolist(), *phrase]
        tail = rng.integers(0, VOCAB, 5).tolist()
        out.append(Recording(f"r{i}", tuple(prompt), tuple([*phrase[:7], *tail, *phrase] if repeat else tail)))
    return out


def replay(model, texts, plan, batch=1):
    loop = Loop(model, plan, batch=batch, capacity=64)
    tickets = [
        loop.submit(Request(number=i, prompt=r.prompt, max_tokens=len(r.output), ignore_eos=True))
        for i, r in enumerate(texts)
    ]
    for _ in loop:
        pass
    return [loop.completed[t] for t in tickets], loop.forwards


@pytest.mark.parametrize("drafter", ["", "lookup", "suffix", "recycle"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_loop_writes_the_recorded_ids(drafter, batch):
    texts = recordings()
    plan = Plan((knob_class(f"decode.draft.{drafter}")(),)) if drafter else Plan()
    model = Replayed(load(ModelSpec(source=f"table:{VOCAB}:2")), texts)
    done, _ = replay(model, texts, plan, batch)
    assert [c.tokens for c in done] == [r.output for r in texts]
    drafted = sum(c.stats.accepted for c in done)
    assert drafted > 0 if drafter in ("lookup", "suffix") else drafted >= 0


def test_plain_replay_pays_one_forward_per_token():
    texts = recordings(2)
    inner = load(ModelSpec(source=f"table:{VOCAB}:2"))
    model = Replayed(inner, texts)
    _, forwards = replay(model, texts, Plan())
    assert forwards == sum(len(r.output) for r in texts)


def test_nodes_off_the_recording_answer_as_the_model_does():
    (text,) = recordings(1)
    inner = load(ModelSpec(source=f"table:{VOCAB}:2"))
    session = Replayed(inner, [text]).open(1, 64)
    bare = inner.open(1, 64)
    for each in (session, bare):
        each.prefill([text.prompt[:-1]])
    right, wrong = text.output[0], (text.output[0] + 1) % VOCAB
    # The pending token, then the right and a wrong child, and a child of the wrong one that the text has at that place.
    nodes = Nodes(
        tokens=np.array([[text.prompt[-1], right, wrong, text.output[1]]], np.int32),
        parents=np.array([[-1, 0, 0, 2]], np.int32),
    )
    step, own = session.forward(nodes), bare.forward(nodes).argmax
    assert step.argmax[0].tolist() == [text.output[0], text.output[1], own[0, 2], own[0, 3]]
    assert step.logits[0, :2].argmax(axis=-1).tolist() == [text.output[0], text.output[1]]
    ids, values = step.top(3)
    assert ids[0, :2, 0].tolist() == [text.output[0], text.output[1]]
    assert (np.diff(values, axis=-1) <= 0).all()
    assert all(len(set(row)) == 3 for row in ids[0].tolist())


def test_a_prompt_that_goes_on_keeps_what_is_shared():
    base = recordings(1)[0]
    turn = Recording("turn", (*base.prompt, *base.output, 5, 6), (7, 8, 9))
    other = Recording("other", (*base.prompt[:4], 1, 2, 3), (4, 5))

    class Counted:
        """Counts the tokens that prefills are given."""

        def __init__(self, inner):
            self.inner, self.tokens = inner, 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def prefill(self, prompts, *, last=False):
            self.tokens += sum(map(len, prompts))
            return self.inner.prefill(prompts, last=last)

    texts = [base, turn, other]
    model = Replayed(load(ModelSpec(source=f"table:{VOCAB}:2")), texts)
    counted = model.open(1, 64).inner = Counted(model.open(1, 64).inner)
    done, _ = replay(model, texts, Plan())
    assert [c.tokens for c in done] == [r.output for r in texts]
    # All of the first; of its continuation one new token and two that the first's last step did not commit; of the
    # third what leaves the first.
    assert counted.tokens == (len(base.prompt) - 1) + 3 + (len(other.prompt) - 1 - 4)


def test_a_cache_that_cannot_be_shortened_is_filled_anew():
    base = recordings(1)[0]
    other = Recording("other", (*base.prompt[:4], 1, 2, 3), (4, 5))
    inner = load(ModelSpec(source="nib", threads=1))
    model = Replayed(inner, [base, other], Half(block=1))
    for text in (base, other):
        done, _ = replay(model, [text], Plan())
        assert [c.tokens for c in done] == [text.output]
    session, alone = model.open(1, 64), inner.open(1, 64, Half(block=1))
    pending = Nodes(tokens=np.array([[9]], np.int32), parents=np.array([[-1]], np.int32))
    for each in (session, alone):
        each.prefill([[*base.prompt[:4], 8, 8]])
    assert (session.forward(pending).logits == alone.forward(pending).logits).all()


def test_recordings_that_cannot_be_told_apart_are_refused():
    one = Recording("one", (1, 2, 3), (4,))
    model = load(ModelSpec(source=f"table:{VOCAB}:2"))
    with pytest.raises(DataError, match="same prompt"):
        Replayed(model, [one, Recording("two", (1, 2, 9), (5,))])
    with pytest.raises(DataError, match="two prompt tokens"):
        Replayed(model, [Recording("short", (1,), (4,))])
