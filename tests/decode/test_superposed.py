"""Superposed decoding: by hand, against a search that reads every input from the start, and at its edges."""

import math
from dataclasses import replace

import numpy as np
import pytest
from rig import rollout, search

from steno.core.errors import UserError
from steno.decode._ngrams import WEIGHTS, Ngrams
from steno.decode._nodes import chain_nodes
from steno.decode.search.superposed import Superposed
from steno.models import ModelSpec, load

NIB = load(ModelSpec(source="nib"))
PROMPT = (50, 51, 52, 50, 51, 60, 50, 51)


def naive(prompt, most, knob):
    """Drafts and scores, every step from the embeddings of all inputs so far."""
    session = NIB.open(1, len(prompt) + most)
    inputs = list(session.embed(np.array(prompt, np.int32)))
    drafts, known = [((), 0.0)], Ngrams(prompt)
    for _ in range(most):
        nodes = replace(chain_nodes([[0] * len(inputs)]), embeds=np.stack(inputs)[None])
        logits = NIB.open(1, len(inputs)).forward(nodes).logits[0, -1].astype(np.float64)
        sharp = np.exp((logits - logits.max()) / knob.temperature)
        best = np.argsort(-sharp, kind="stable")[: knob.pool]
        law = {int(v): sharp[v] / sharp[best].sum() for v in best}
        pairs = []
        for text, score in drafts:
            support = known.law([*prompt, *text], law)
            for v, p in law.items():
                if p == 0:
                    continue
                grams = knob.alpha * math.log(support[v]) if support[v] else knob.unseen
                pairs.append(((*text, v), score + (1 - knob.alpha) * math.log(p) + (grams if knob.alpha else 0)))
        drafts = sorted(pairs, key=lambda pair: -pair[1])[: knob.k]
        weights = np.exp([score - drafts[0][1] for _, score in drafts])
        newest = session.embed(np.array([text[-1] for text, _ in drafts], np.int32))
        inputs.append((newest * (weights / weights.sum())[:, None]).sum(0).astype(np.float32))
    return drafts


@pytest.mark.parametrize(
    "knob", [Superposed(temperature=1.0), Superposed(alpha=0.0, temperature=2.0, k=5), Superposed(unseen=-3.0, k=2)]
)
def test_it_finds_what_a_search_from_the_start_finds(knob):
    done = search(NIB, knob, 6, PROMPT, ignore_eos=True)
    want = naive(PROMPT, 6, knob)
    assert [h.tokens for h in done.found] == [text for text, _ in want]
    assert [h.score * 6 for h in done.found] == pytest.approx([score for _, score in want], abs=1e-4)


def test_one_draft_without_ngrams_is_greedy():
    done = search(NIB, Superposed(k=1, alpha=0.0), 8, PROMPT, ignore_eos=True)
    assert done.tokens == tuple(rollout(NIB, PROMPT, 8))


@pytest.mark.parametrize("k", [1, 4, 9])
def test_one_forward_a_token_for_any_number_of_drafts(k):
    done = search(NIB, Superposed(k=k, alpha=0.0, temperature=3.0), 7, PROMPT, ignore_eos=True)
    assert done.stats.passes == 7 and len(done.found) == k


def test_ngrams_decide_between_drafts_by_hand():
    """After 50 51 the prompt has 52 and 60, once each: only these drafts have support, whatever the model would say."""
    done = search(NIB, Superposed(k=2, alpha=0.9, temperature=3.0, pool=1024), 1, PROMPT, ignore_eos=True)
    assert {h.tokens for h in done.found} == {(52,), (60,)}


def test_ngrams_against_counting():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 4, 300).tolist()
    known = Ngrams(ids)
    for _ in range(50):
        past = rng.integers(0, 4, int(rng.integers(1, 8))).tolist()
        want = dict.fromkeys(range(5), 0.0)
        for size in range(1, min(5, len(past)) + 1):
            places = [i for i in range(len(ids) - size) if ids[i : i + size] == past[-size:]]
            for v in want:
                want[v] += WEIGHTS[size - 1] * sum(ids[i + size] == v for i in places) / max(len(places), 1)
        assert known.law(past, range(5)) == pytest.approx(want)


def test_a_corpus_takes_the_prompt_s_place(tmp_path):
    ids = tmp_path / "ids.npy"
    np.save(ids, np.array([51, 77, 51, 78]))
    done = search(
        NIB, Superposed(k=2, alpha=0.9, temperature=3.0, pool=1024, corpus=str(ids)), 1, PROMPT, ignore_eos=True
    )
    assert {h.tokens for h in done.found} == {(77,), (78,)}
    with pytest.raises(UserError, match=r"no file .*numpy\.save"):
        search(NIB, Superposed(corpus=str(tmp_path / "none.npy")), 1, PROMPT)
    np.save(ids, np.zeros((2, 2)))
    with pytest.raises(UserError, match="holds no row of token ids"):
        search(NIB, Superposed(corpus=str(ids)), 1, PROMPT)
