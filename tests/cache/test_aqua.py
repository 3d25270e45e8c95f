"""cache.aqua: what the layer below tells need not be stored; a reader repeats the encoder's numbers."""

import pytest
import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._chain import ChainCodec, Normal, Predictor, Shared, affine, ridge
from steno.cache._hadamard import hadamard
from steno.cache._ledger import resident_bytes
from steno.cache._normal import levels
from steno.cache._tables import write
from steno.cache.aqua import Aqua


def test_by_hand():
    """(3, 1) turned is (4, 2) / root 2, of mean square 5; in units of root 5 that is 1.26 and 0.63."""
    codes, scale = Normal(2, 2).encode(torch.tensor([3.0, 1]))
    assert float(scale) == pytest.approx(5**0.5, abs=2e-3)
    table = levels(2)
    unit = torch.stack([table[3], table[2]])
    want = torch.stack([unit.sum(), unit[0] - unit[1]]) / 2**0.5 * 5**0.5
    torch.testing.assert_close(Normal(2, 2).decode(codes, scale), want, atol=5e-3, rtol=0)


def test_the_quantiser_is_as_good_on_outliers_as_on_noise():
    """Mean square error at 2 bits is at most that of the best levels for a normal law (Max 1960: 0.1175)."""
    noise = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    spiky = torch.zeros(400, 64)
    spiky[:, ::9] = noise[:, ::9] * 20
    for x in (noise, spiky):
        error = (Normal(2, 64).decode(*Normal(2, 64).encode(x)) - x).square().mean() / x.square().mean()
        assert 0.08 < float(error) < 0.1175 * 1.05
    torch.testing.assert_close(hadamard(hadamard(noise)), noise)


def chained(k: torch.Tensor, v: torch.Tensor, predictors: tuple[Predictor, ...]) -> list[tuple[torch.Tensor, ...]]:
    """What each layer reads of k, v [L, G, T, D] stored together in 2 bits."""
    normals = tuple(Normal(bits, 16) for bits in (4, 2, 2)[: len(k)])
    codecs = [ChainCodec(normals, predictors, 2, layer, Shared()) for layer in range(len(k))]
    parts = codecs[-1].encode(k.flatten(0, 1)[:, None], v.flatten(0, 1)[:, None])
    return [tuple(x[:, 0] for x in codec.decode(parts)) for codec in codecs]


def test_what_the_layer_below_tells_costs_no_bits():
    """Layers that are linear in the reconstructions below: what is left to code is 0, and nothing is lost."""
    k, v = (x[:, :, :64] for x in text(1, kv_shape(layers=3), 64))
    noise = torch.Generator().manual_seed(0)
    predictors = tuple(
        Predictor(torch.randn(17, 16, generator=noise).half() / 4, torch.randn(33, 16, generator=noise).half() / 4)
        for _ in range(2)
    )
    flat = [chained(k[:1], v[:1], ())[0]]
    for predictor in predictors:
        below_k, below_v = (x.movedim(0, 1).flatten(1) for x in flat[-1])
        keys = affine(below_k, predictor.keys)
        values = affine(torch.cat([keys, below_v], 1), predictor.values)
        flat.append(tuple(x.unflatten(1, (2, 8)).movedim(1, 0) for x in (keys, values)))
    told = torch.stack([pair[0] for pair in flat]), torch.stack([pair[1] for pair in flat])
    told[0][0], told[1][0] = k[0], v[0]
    for layer, (keys, values) in enumerate(chained(*told, predictors)):
        assert torch.equal(keys, flat[layer][0])
        assert torch.equal(values, flat[layer][1])


def test_fitted_predictors_leave_less_error_at_the_same_bits(tmp_path):
    """Layers that share most of what they say, through the whole form: stored tables, rotation, sinks."""
    shape = kv_shape(batch=1, layers=3, rope=None)
    k, v = text(3, shape, 192)
    k[1:], v[1:] = k[:1] * 0.9 + k[1:] * 0.1, v[:1] * 0.8 + k[:1] * 0.1 + v[1:] * 0.1
    wide = [[x.movedim(0, 1).flatten(1) for x in (k[layer], v[layer])] for layer in range(3)]
    tables = {}
    for layer in (1, 2):
        tables[f"{layer}.keys"] = ridge(wide[layer - 1][0], wide[layer][0])
        tables[f"{layer}.values"] = ridge(torch.cat([wide[layer][0], wide[layer - 1][1]], 1), wide[layer][1])
    write(tmp_path / "a.safetensors", (3, 4, 2, 8), tables)
    errors, sizes = [], []
    for name in (str(tmp_path / "a.safetensors"), ""):
        tier = Aqua(tables=name, sinks=3, residual=0, block=64).open(shape)
        for layer in range(3):
            tier.seal(0, layer, k[layer], v[layer])
        held = tier.materialise(2)
        assert torch.equal(held[0][0, :, :3], k[2, :, :3])
        errors.append([float((held[side][0] - x[2]).square().mean()) for side, x in enumerate((k, v))])
        sizes.append(resident_bytes(tier.storages()))
    assert sizes[0] == sizes[1]
    # 4, 2 and 2 bits of 16 channels, a scale per token and layer, and three exact tokens.
    assert sizes[0]["keys"] == 192 * (8 + 4 + 4)
    assert sizes[0]["key_scales"] == 192 * 3 * 2
    assert sizes[0]["sinks"] == 3 * 3 * 2 * 2 * 8 * 4
    for side in range(2):
        assert errors[0][side] < errors[1][side] / 3


def test_layers_stand_together_and_once():
    feed = Feed(Aqua(residual=0), kv_shape(batch=1), seeds=[1])
    feed.grow(0, 128)
    assert [len(found) for found in feed.held.storages().values()] == [1] * 5
    # In turn or out of it, a layer reads the same, and nothing stays behind the last.
    shared = feed.held.forms[0].codec.shared
    for order in ((0, 1), (1, 0), (1, 1), (0, 0)):
        fresh = Feed(Aqua(residual=0), kv_shape(batch=1), seeds=[1])
        fresh.grow(0, 128)
        for layer in order:
            assert torch.equal(fresh.held.materialise(layer)[0], feed.held.materialise(layer)[0])
    feed.held.materialise(1)
    assert shared.codes is None
    assert shared.below is None
    assert not torch.equal(feed.held.materialise(0)[0], feed.held.materialise(1)[0])
