"""cache.kvheads: rank-bound data is exact, the error is what was cut off, a group of heads stands once."""

from pathlib import Path

import pytest
import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._basis import BasisCodec, mean_basis, principal
from steno.cache._ledger import resident_bytes
from steno.cache._tables import write
from steno.cache._witness import Seen
from steno.cache.kvheads import KVHeads
from steno.core.errors import KnobError

SHAPE = kv_shape(batch=1)
SIZE = SHAPE.layers, SHAPE.query_heads, SHAPE.key_heads, SHAPE.head_dim


def test_by_hand():
    """Two heads that hold x and 3x lie along (1, 3) / root 10; averaged, both are read as 2x."""
    x = torch.tensor([[1.0], [2.0]])
    heads = torch.stack([x, 3 * x])[:, None]
    basis = principal(torch.tensor([[[5.0, 15], [15, 45]]]))
    assert basis[0, :, 0].abs().tolist() == pytest.approx([10**-0.5, 3 * 10**-0.5])
    codec = BasisCodec(basis[..., :1], basis[..., :1], 2)
    parts = codec.encode(heads, heads)
    assert parts["keys"].shape == (1, 1, 2, 1)
    assert parts["keys"].flatten().abs().tolist() == pytest.approx([10**0.5, 2 * 10**0.5])
    torch.testing.assert_close(codec.decode(parts)[0], heads)
    codec = BasisCodec(*[mean_basis(1, 2, 1, 1)] * 2, 2)
    torch.testing.assert_close(codec.decode(codec.encode(heads, heads))[1], torch.stack([2 * x, 2 * x])[:, None])


def test_the_error_is_the_energy_of_the_directions_left_out():
    k = text(1, SHAPE, 64)[0][0]
    wide = k.movedim(0, 1).flatten(1).double()
    full = principal(wide.T @ wide)
    torch.testing.assert_close(full.T @ full, torch.eye(16), atol=1e-5, rtol=0)
    sigma = torch.linalg.svdvals(wide)
    for rank in (3, 8, 16):
        codec = BasisCodec(*[full[None, :, :rank]] * 2, 2)
        out = codec.decode(codec.encode(k[:, None], k[:, None]))[0][:, 0]
        error = float((out - k).square().sum())
        assert error == pytest.approx(float(sigma[rank:].square().sum()), rel=1e-3, abs=1e-3)


def fitted(path: Path, k: torch.Tensor, v: torch.Tensor) -> None:
    tables = {}
    for layer in range(SHAPE.layers):
        for side, x in (
            ("keys", Seen(k[layer], k[layer], v[layer], SHAPE.rope).before_rotation()),
            ("values", v[layer]),
        ):
            wide = x.movedim(0, 1).flatten(1).double()
            tables[f"{layer}.{side}.2"] = principal(wide.T @ wide)[None]
    write(path, SIZE, tables)


def test_rank_bound_heads_come_back_through_the_rotation(tmp_path):
    """Values of two heads in one head's width, keys in twice that: both exact, at the bytes of the ranks."""
    k, v = text(1, SHAPE, 64)
    v = torch.stack([v[:, 0], v[:, 0].flip(-1)], 1)
    fitted(tmp_path / "b.safetensors", k, v)
    knob = KVHeads(basis=str(tmp_path / "b.safetensors"), keep=200, residual=0)
    tier, half = knob.open(SHAPE), KVHeads(basis=knob.basis, residual=0).open(SHAPE)
    for layer in range(2):
        tier.seal(0, layer, k[layer], v[layer])
        half.seal(0, layer, k[layer], v[layer])
    torch.testing.assert_close(tier.materialise(1)[0][0], k[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(half.materialise(1)[1][0], v[1], atol=1e-4, rtol=0)
    assert float((half.materialise(1)[0][0] - k[1]).abs().max()) > 0.1
    # One head of 8 channels where there were two.
    assert resident_bytes(half.storages()) == {"keys": 2 * 64 * 8 * 4, "values": 2 * 64 * 8 * 4}


def test_a_fitted_basis_beats_the_mean(tmp_path):
    k, v = text(2, SHAPE, 128)
    fitted(tmp_path / "b.safetensors", k[:, :, :64], v[:, :, :64])
    errors = []
    for basis in (str(tmp_path / "b.safetensors"), ""):
        feed = Feed(KVHeads(basis=basis, residual=0), SHAPE, seeds=[2])
        feed.grow(0, 128)
        errors.append(float((feed.held.materialise(0)[0][0] - k[0]).square().mean()))
    assert errors[0] < 0.9 * errors[1]


def test_files_of_other_models_and_missing_ones_are_refused():
    with pytest.raises(
        KnobError, match=r"basis names a file, and there is none at 'nowhere'. Shipped are: .*kvheads-nib"
    ):
        KVHeads(basis="nowhere").open(SHAPE)
    with pytest.raises(KnobError, match=r"was fitted to a model of \(6, 3, 1, 64\) .*this one has \(2, 4, 2, 8\)"):
        KVHeads(basis="kvheads-nib").open(SHAPE)
