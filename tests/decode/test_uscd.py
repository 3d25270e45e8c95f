"""USCD: by hand, against a decoder that runs both prompts from the start, and what it does not run."""

import numpy as np
import pytest
from rig import Strict, rollout, run, softmax

from steno.core import Plan
from steno.decode import Request, generate
from steno.decode.search.uscd import Uscd, sureness, without_examples

WORDS = [
    "def f(x):\n",
    '    """Doubles.\n',
    "    >>> f(",
    "2)\n",
    "    4\n",
    "\n",
    '    """\n',
    "    return ",
    "x",
    " + x",
    "e",
]
PROMPT = (0, 1, 2, 3, 4, 6, 7)
LAME = (0, 1, 6, 7)


def text(ids):
    return "".join(WORDS[i] for i in ids)


def decode(model, knob, most=6, prompt=PROMPT, text=text, **more):
    asked = Request(number=0, prompt=prompt, max_tokens=most, **more)
    (done,) = generate(model, [asked], Plan((knob,)), text=text)
    return done


def test_examples_leave_the_prompt_token_by_token():
    assert without_examples(PROMPT, text) == LAME
    assert without_examples((0, 2, 3, 4, 5, 7), text) == (0, 5, 7), "a blank line ends what is printed"
    assert without_examples((0, 7), text) == (0, 7)
    assert without_examples((2, 3, 4), text) == (2,), "something stays"
    # A token that reaches beyond an example stays whole.
    words = ["a\nassert", " f(1)", " == 2\nb"]
    assert without_examples((0, 1, 2), lambda ids: "".join(words[i] for i in ids)) == (0, 2)
    # Two tokens that make one character: only together they are as long as they are.
    halves = {(): "", (0,): "\ufffd", (1,): "\ufffd", (0, 1): "é", (0, 1, 2): "é\n>>> f\n", (2,): "\n>>> f\n"}
    assert without_examples((0, 1, 2), lambda ids: halves[tuple(ids)]) == (0, 1, 2)


def test_sureness_by_hand():
    with np.errstate(divide="ignore"):
        assert sureness(np.log(np.full(8, 1 / 8))) == pytest.approx(0, abs=1e-9)
        assert sureness(np.log(np.eye(100)[3])) == pytest.approx(np.sqrt(0.99))
    assert sureness(np.log(np.array([0.5, 0.5, 1e-30, 1e-30]))) == pytest.approx(0.5)


def test_a_step_by_hand():
    """Unsure between x and + x; the lame prompt wants x as well, so that + x is what the examples say."""
    laws = {PROMPT: {8: 0.5, 9: 0.45, 10: 0.05}, LAME: {8: 0.7, 9: 0.05, 10: 0.001}}

    def script(past):
        law = np.full(len(WORDS), 1e-9)
        for token, p in laws.get(past, {8: 1.0}).items():
            law[token] = p
        return np.log(law)

    model = Strict(vocab=len(WORDS), script=script)
    assert decode(model, Uscd(), 1).tokens == (9,)
    assert decode(model, Uscd(eta=0.0), 1).tokens == decode(model, Uscd(sure=0.0), 1).tokens == (8,)
    assert decode(model, Uscd(alpha=0.95), 1).tokens == (8,), "0.45 is less than 0.95 of 0.5"
    # Without the mask the token that the lame prompt thinks least of would come.
    assert decode(model, Uscd(alpha=0.0, eta=9.0), 1).tokens == (10,)
    assert decode(model, Uscd(alpha=0.2, eta=9.0), 1).tokens == (9,)


def naive(model, knob, most, prompt, lame):
    done = []
    while len(done) < most and (not done or done[-1] != model.end):
        law = softmax(model.row([*prompt, *done]))
        other = softmax(model.row([*lame, *done]))
        if lame == prompt or sureness(np.log(law)) >= knob.sure:
            done.append(int(law.argmax()))
            continue
        near = [v for v in range(model.vocab) if law[v] >= knob.alpha * law.max()]
        done.append(max(near, key=lambda v: (1 + knob.eta) * np.log(law[v]) - knob.eta * np.log(other[v])))
    return tuple(done)


@pytest.mark.parametrize("sure", [0.3, 0.8, 1.0])
def test_it_decodes_as_both_prompts_from_the_start_do(sure):
    for seed in range(6):
        model = Strict(vocab=len(WORDS), seed=seed, end=5, width=3)
        knob = Uscd(sure=sure, eta=1.5)
        assert decode(model, knob, 9).tokens == naive(model, knob, 9, PROMPT, LAME)


def test_the_lame_prompt_runs_only_where_it_is_asked():
    model = Strict(vocab=len(WORDS), seed=1)
    assert decode(model, Uscd(sure=0.0), 7).stats.passes == 7
    assert decode(model, Uscd(sure=0.9999), 7).stats.passes > 7
    plain = tuple(rollout(model, PROMPT, 7))
    # Without examples, and without words, the prompts are one.
    for done in (decode(model, Uscd(), 7, text=None), decode(model, Uscd(), 7, prompt=(0, 7))):
        assert done.stats.passes == 7
    assert decode(model, Uscd(), 7, text=None).tokens == plain
    assert run(model, [Request(number=0, prompt=PROMPT, max_tokens=7)], Uscd())[0].tokens == plain
