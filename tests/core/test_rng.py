"""Random numbers are a pure function of their key."""

from itertools import product

from steno.core import Key


def test_each_part_of_the_key_matters_and_nothing_else_does():
    keys = [Key(*parts) for parts in product((0, 1), (0, 1), (0, 1), ("token", "accept"))]
    assert len({k.bits() for k in keys}) == len(keys)
    assert Key(3, 1, 7, "token").uniform() == Key(3, 1, 7, "token").uniform()


def test_known_value():
    """Golden: a change here changes every seeded text anybody has produced."""
    assert Key(1, 2, 3, "token").bits(64) == GOLDEN


def test_uniform_is_uniform():
    values = [Key(0, 0, i, "accept").uniform() for i in range(20000)]
    assert 0 <= min(values)
    assert max(values) < 1
    assert abs(sum(values) / len(values) - 0.5) < 0.01
    tenths = [0] * 10
    for v in values:
        tenths[int(v * 10)] += 1
    assert sum((n - 2000) ** 2 / 2000 for n in tenths) < 33.7  # chi-square, 9 degrees, p = 1e-4


GOLDEN = 17496228232559250891
