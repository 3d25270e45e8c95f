"""Contrastive search: by hand, against a search that runs every candidate by itself, and at its edges."""

import numpy as np
import pytest
from rig import rollout, search, softmax

from steno.core import Want
from steno.decode import Request, generate
from steno.decode._nodes import chain_nodes
from steno.decode.search.contrastive import Contrastive
from steno.models import ModelSpec, load

NIB = load(ModelSpec(source="nib"))
PROMPT = tuple(range(40, 52))


def states(ids):
    """(logits [V], last hidden states [T, M]) of a text, run whole in a session of its own."""
    session = NIB.open(1, len(ids))
    step = session.forward(chain_nodes([list(ids)]), Want(hidden=(session.caps.num_layers,)))
    return step.logits[0, -1].copy(), step.hidden(session.caps.num_layers)[0].astype(np.float64)


def naive(prompt, most, k, alpha):
    """The paper's rule, a forward of the whole text per candidate."""
    text = list(prompt)
    while len(text) < len(prompt) + most and text[-1] not in NIB.eos:
        logits, past = states(text)
        law = softmax(logits)
        worth = {}
        for v in np.argsort(-law, kind="stable")[:k].tolist():
            own = states([*text, v])[1][-1]
            alike = max(own @ h / np.linalg.norm(own) / np.linalg.norm(h) for h in past)
            worth[v] = (1 - alpha) * law[v] - alpha * alike
        text.append(max(worth, key=worth.get))
    return tuple(text[len(prompt) :])


@pytest.mark.parametrize(("k", "alpha"), [(4, 0.6), (2, 0.9), (6, 0.3)])
def test_it_takes_what_a_search_without_trees_takes(k, alpha):
    done = search(NIB, Contrastive(k=k, alpha=alpha), 6, PROMPT)
    assert done.tokens == naive(PROMPT, 6, k, alpha)
    assert done.found[0].score <= 0


def test_without_contrast_it_is_greedy():
    greedy = tuple(rollout(NIB, PROMPT, 8))
    assert search(NIB, Contrastive(alpha=0.0), 8, PROMPT, ignore_eos=True).tokens == greedy
    assert search(NIB, Contrastive(k=1, alpha=1.0), 8, PROMPT, ignore_eos=True).tokens == greedy
    assert search(NIB, Contrastive(alpha=0.9), 8, PROMPT, ignore_eos=True).tokens != greedy


def test_one_forward_for_the_prompt_and_one_a_token():
    assert search(NIB, Contrastive(), 8, PROMPT, ignore_eos=True).stats.passes == 9
    # A prompt wider than a forward takes several.
    widest = NIB.open(1, 8).caps.max_width
    long = PROMPT * (widest // len(PROMPT) + 1)
    assert search(NIB, Contrastive(), 2, long, ignore_eos=True).stats.passes == 4


def test_the_token_past_a_full_context_is_the_most_probable():
    asked = Request(number=0, prompt=PROMPT, max_tokens=9, ignore_eos=True)
    from steno.core import Plan

    (done,) = generate(NIB, [asked], Plan((Contrastive(alpha=0.9),)), capacity=len(PROMPT) + 3)
    assert (len(done.tokens), done.finish) == (4, "context")
    assert done.tokens[:3] == naive(PROMPT, 3, 4, 0.9)
    assert done.tokens[3] == rollout(NIB, [*PROMPT, *done.tokens[:3]], 1)[0]


def test_the_number_of_layers_is_that_of_the_model():
    assert NIB.open(1, 8).caps.num_layers == NIB.shape.layers
