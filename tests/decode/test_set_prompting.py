"""Set-based prompting: equal bits for every order of the items, and what each item sees."""

from itertools import permutations

import numpy as np
import pytest
from rig import after, rollout

from steno.core import Plan, Want
from steno.core.errors import CapsError
from steno.decode import Request, generate
from steno.decode._hunt import Field
from steno.decode._nodes import chain_nodes
from steno.decode.search import set_prompting
from steno.decode.search.set_prompting import Reader, SetPrompting, sections
from steno.models import ModelSpec, load

NIB = load(ModelSpec(source="nib"))
WORDS = {1: "Choose:\n", 2: "- ", 3: "\n", 4: "Answer:", 5: "- x\n"}
START, END = (1,), (4, 70)
ITEMS = ((2, 50, 51, 3), (2, 60, 3), (2, 70, 71, 72, 73, 3))


def text(ids):
    return "".join(WORDS.get(i, f"w{i} ") for i in ids)


def prompt(items):
    return (*START, *(token for item in items for token in item), *END)


def field(ids):
    session = NIB.open(1, 200)
    return Field(session, Request(number=0, prompt=ids), 10, frozenset(), (), text=text)


def logits(ids, order=sorted):
    reader = Reader(field(ids))
    for items in sections(ids, "- ", text):
        reader.read(order(items))
    return reader.logits


def test_every_order_gives_the_same_bits():
    first = logits(prompt(ITEMS))
    for order in permutations(ITEMS):
        np.testing.assert_array_equal(logits(prompt(order)).view(np.uint32), first.view(np.uint32))
    assert np.abs(after(NIB, prompt(ITEMS)) - after(NIB, prompt(ITEMS[::-1]))).max() > 0.1, "read as text it matters"


def test_the_masks_do_it_and_not_the_sorting():
    """In the order of the prompt only the order of summation is left."""
    kept = [logits(prompt(order), order=list) for order in permutations(ITEMS)]
    assert max(np.abs(one - kept[0]).max() for one in kept) < 1e-3 * kept[0].std()


def test_items_see_what_stands_before_them_and_themselves():
    """States of each item are those of the item right behind the start, with nothing else there."""
    last = NIB.shape.layers
    seen = []

    class Spy(Field):
        def forward(self, session, nodes, want=Want()):
            step = super().forward(session, nodes, Want(hidden=(last,)))
            seen.append((nodes, step.hidden(last).copy()))
            return step

    ground = Spy(NIB.open(1, 200), Request(number=0, prompt=START), 10, frozenset(), (), text=text)
    reader = Reader(ground)
    reader.read([START])
    reader.read(list(ITEMS))
    nodes, states = seen[-1]
    assert nodes.positions.tolist() == [[1, 2, 3, 4, 1, 2, 3, 1, 2, 3, 4, 5, 6]]
    place = 0
    for item in ITEMS:
        alone = NIB.open(1, 200)
        alone.prefill([list(START)])
        want = alone.forward(chain_nodes([item]), Want(hidden=(last,))).hidden(last)[0]
        np.testing.assert_allclose(states[0, place : place + len(item)], want, atol=1e-4)
        place += len(item)
    # What follows begins behind the longest item.
    reader.read([(4,)])
    assert seen[-1][0].positions.tolist() == [[1 + max(map(len, ITEMS))]]


def test_one_item_is_ordinary_text():
    np.testing.assert_array_equal(logits(prompt(ITEMS[:1])), after(NIB, prompt(ITEMS[:1])))
    asked = Request(number=0, prompt=prompt(ITEMS[:1]), max_tokens=6, ignore_eos=True)
    (done,) = generate(NIB, [asked], Plan((SetPrompting(),)), text=text)
    assert done.tokens == tuple(rollout(NIB, asked.prompt, 6))
    long = Request(number=0, prompt=tuple(range(100, 500)), max_tokens=3, ignore_eos=True)
    for words in (text, None):
        (done,) = generate(NIB, [long], Plan((SetPrompting(),)), text=words)
        assert done.tokens == tuple(rollout(NIB, long.prompt, 3))


def test_texts_are_the_same_for_every_order():
    asked = [Request(number=0, prompt=prompt(order), max_tokens=8, ignore_eos=True) for order in permutations(ITEMS)]
    done = generate(NIB, asked, Plan((SetPrompting(),)), text=text)
    assert len({c.tokens for c in done}) == 1
    assert len({c.tokens for c in generate(NIB, asked, Plan(), text=text)}) > 1


def test_sections_by_hand():
    def cut(ids, bullet="- "):
        return list(sections(ids, bullet, text))

    assert cut(prompt(ITEMS)) == [[START], list(ITEMS), [END]]
    assert cut(prompt(ITEMS), bullet="* ") == [[prompt(ITEMS)]]
    # Two sets; a single item; a set at the end, which nothing follows.
    assert cut((2, 9, 3, 5, 3, 5, 5, 4)) == [[(2, 9, 3), (5,)], [(3,)], [(5,), (5,)], [(4,)]]
    assert cut((1, 5, 4)) == [[(1, 5, 4)]]
    assert cut((1, 5, 5)) == [[(1, 5, 5)]]
    # A token that holds the end of one line and the beginning of the next belongs to the latter.
    words = ["a", "\n- ", "b", "\nc"]
    got = list(sections((0, 1, 2, 1, 2, 3), "- ", lambda ids: "".join(words[i] for i in ids)))
    assert got == [[(0,)], [(1, 2), (1, 2)], [(3,)]]


def test_a_set_wider_than_a_forward_is_refused():
    wide = [(2, *range(100, 240), 3)] * 2
    asked = Request(number=0, prompt=prompt(wide), max_tokens=2)
    with pytest.raises(CapsError, match="a set of 284 tokens has to fit one forward, which takes 256 here"):
        generate(NIB, [asked], Plan((SetPrompting(),)), text=text)
    assert set_prompting.CARD.caps == ("fork", "visible")
