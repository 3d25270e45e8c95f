"""cache.lacache: rungs cover every token between them, and no layer is over its budget."""

import pytest
from tier_contract import Feed, kv_shape

from steno.cache.lacache import LaCache, thin


def held(knob: LaCache, layers: int, length: int) -> list[list[int]]:
    feed = Feed(knob, kv_shape(batch=1, layers=layers), seeds=[3])
    feed.grow(0, length)
    out = []
    for layer in range(layers):
        heads = feed.held.materialise(layer)[2][0].tolist()
        assert heads[0] == heads[1]
        out.append(heads[0])
    return out


def test_thinning_by_hand():
    assert thin(list("abcdefgh"), 3, 0) == ["a", "d", "g", "h"]
    assert thin(list("abcdefgh"), 3, 2) == ["c", "f", "g", "h"]
    assert thin(list("abcd"), 2, 3) == ["b", "d"]
    # Fewer slots than rungs: still one less in the end.
    assert thin(list("ab"), 32, 5) == ["b"]


def test_by_hand():
    """Budget 8, no sinks, blocks of 4: at 12 tokens layer 0 keeps the even ones and layer 1 the odd ones."""
    knob = LaCache(budget=8, sinks=0, residual=0, block=4)
    assert held(knob, 2, 8) == [list(range(8))] * 2
    assert held(knob, 2, 12) == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    # Layer 0 at 16: 0 2 4 6 8 10 12 13 14 15 are two too many, and are thinned once more.
    assert held(knob, 2, 16)[0] == [0, 4, 8, 12, 14]


@pytest.mark.parametrize("span", [17, 34, 50, 67, 99])
def test_one_pass_loses_no_token_in_all_layers(span):
    knob = LaCache(budget=24, span=span, sinks=4, residual=0, block=28)
    layers = held(knob, 6, 28)
    assert set().union(*layers) == set(range(28))
    assert all(len(layer) <= 24 for layer in layers)
    assert all(layer[:4] == [0, 1, 2, 3] for layer in layers)


@pytest.mark.parametrize("layers", [1, 2, 5, 32])
def test_no_layer_is_over_its_budget(layers):
    knob = LaCache(budget=16, span=1, sinks=4, residual=3, block=5)
    for length in (17, 40, 200):
        for layer in held(knob, layers, length):
            assert len(layer) <= 16
            assert layer[:4] == [0, 1, 2, 3]


def test_together_they_remember_further_than_a_window():
    layers = held(LaCache(budget=32, residual=0, block=8), 6, 512)
    union = set().union(*layers)
    assert max(map(len, layers)) <= 32 < len(union)
    # Finer for what is near.
    assert len([p for p in union if p >= 256]) > len([p for p in union if p < 256])
