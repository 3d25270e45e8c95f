"""Entropy-adaptive decoding: who writes when, against the rule written out; and the ends of its scale."""

import numpy as np
import pytest
from rig import Strict, plain, run, softmax

from steno.core.errors import KnobError
from steno.decode import Request
from steno.decode.search.entropy_adaptive import EntropyAdaptive, entropy
from steno.models import ModelSpec, load

BIG = Strict(vocab=20, order=2, seed=3, end=4)
SMALL = "table:20:7"


def ask(knob: EntropyAdaptive, number: int = 0, most: int = 40, on: Strict = BIG, **more):
    (done,) = run(on, [Request(number=number, prompt=(1, 2, 3 + number), max_tokens=most, **more)], knob)
    return done


def naive(knob: EntropyAdaptive, prompt, most: int) -> tuple[list[int], int]:
    """(tokens, how many of them the small model wrote), with neither sessions nor logarithms."""
    small = load(ModelSpec(source=SMALL))
    ids, spread, writing, since, count = list(prompt), [], BIG, 0, 0
    while len(ids) - len(prompt) < most and (len(ids) == len(prompt) or ids[-1] != BIG.end):
        law = softmax(writing.row(ids))
        count += writing is small
        ids.append(int(law.argmax()))
        spread.append(-sum(p * np.log(p) for p in law if p > 0))
        since += 1
        wanted = BIG if np.mean(spread[-knob.window :]) >= knob.threshold else small
        if wanted is not writing and since >= knob.least:
            writing, since = wanted, 0
    return ids[len(prompt) :], count


@pytest.mark.parametrize("knob", [
    EntropyAdaptive(small=SMALL, threshold=t, window=w, least=n) for t, w, n in ((0.3, 1, 1), (0.3, 5, 2), (0.6, 3, 4))
])  # fmt: skip
def test_the_rule_decides_who_writes(knob):
    shares = []
    for number in range(5):
        done = ask(knob, number)
        tokens, count = naive(knob, done.request.prompt, 40)
        assert list(done.tokens) == tokens
        shares.append((count, len(tokens)))
    assert 0 < sum(count for count, _ in shares) < sum(size for _, size in shares), "both have written"


def test_the_ends_of_the_scale():
    request = ask(EntropyAdaptive(threshold=0.0, small=SMALL)).request
    greedy = plain(BIG, request)
    assert ask(EntropyAdaptive(threshold=0.0, small=SMALL)).tokens == greedy[0]
    for threshold in (0.3, 100.0):
        same = ask(EntropyAdaptive(threshold=threshold, window=1, least=1))
        assert same.tokens == greedy[0], "without a small model switching changes nothing"
    always = EntropyAdaptive(threshold=100.0, small=SMALL, window=1, least=1)
    _, count = naive(always, request.prompt, 40)
    assert count == len(ask(always).tokens) - 1, "the large model writes the first token"


def test_a_model_that_comes_back_catches_up_in_one_pass():
    done = ask(EntropyAdaptive(small=SMALL, threshold=0.3, window=1, least=1), ignore_eos=True)
    assert done.stats.passes == len(done.tokens) == 40


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(KnobError, match="vocabulary of 20; table:21:0 has 21"):
        ask(EntropyAdaptive(small="table:21:0"))
    with pytest.raises(KnobError, match="small must hold prompt and text, 5003 tokens"):
        ask(EntropyAdaptive(small=SMALL), most=5000, on=Strict(vocab=20, context=9000))


def test_entropy_by_hand():
    assert entropy(np.log(np.array([0.25] * 4))) == pytest.approx(np.log(4))
    with np.errstate(divide="ignore"):
        assert entropy(np.log(np.array([1.0, 0.0]))) == 0.0
