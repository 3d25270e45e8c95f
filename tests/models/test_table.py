"""The table backend: the reference `Session`, so the contract holds bit for bit."""

import numpy as np
import pytest
from contract import CHECKS, Subject, chains

from steno.core import Keeps
from steno.core.errors import CapsError, ModelError
from steno.models import ModelSpec, load
from steno.models.table import TableModel


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_contract(check):
    check(Subject(model=TableModel(vocab=40, seed=3), atol=0.0))


def test_promises_bits():
    caps = TableModel().open(1, 8).caps
    assert caps.chain_exact is caps.tree_exact is Keeps.BITS


def test_rows_are_a_function_of_the_last_tokens():
    model = TableModel(vocab=16, seed=1, order=2)
    np.testing.assert_array_equal(model.row([5, 1, 2]), model.row([9, 1, 2]))
    assert not np.array_equal(model.row([5, 1, 2]), model.row([5, 2, 1]))
    assert not np.array_equal(model.row([1]), TableModel(vocab=16, seed=2, order=2).row([1]))


def test_rows_are_peaked_and_centred():
    rows = np.stack([TableModel(vocab=256).row([i]) for i in range(200)])
    assert abs(rows.mean()) < 0.1
    assert 5.8 < rows.std() < 6.2


def test_a_script_decides():
    model = TableModel(vocab=4, script=lambda past: np.eye(4)[len(past) % 4])
    session = model.open(1, 8)
    session.prefill([[0, 0]])
    assert session.forward(chains([0, 0])).argmax.tolist() == [[3, 0]]


def test_spec_names_vocab_seed_and_order():
    model = load(ModelSpec(source="table:50:7:3"))
    assert (model.vocab, model.name, model.backend) == (50, "table:50:7", "table")
    assert isinstance(model, TableModel)
    assert model.order == 3
    with pytest.raises(ModelError, match="table:VOCAB:SEED"):
        load(ModelSpec(source="table:many"))


def test_takes_no_cache_form():
    with pytest.raises(CapsError, match="keeps no KV"):
        TableModel().open(1, 8, object())
