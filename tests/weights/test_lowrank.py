"""Low rank by the features: optimality, the budget, and that the folder loads as what the factors mean."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from weights_tools import VOCAB, ids

from steno.core.errors import KnobError, ModelError, PromptError
from steno.models.lowrank import is_low_rank, resolve
from steno.weights._moments import collect
from steno.weights._ranks import STEP, choices, share
from steno.weights.lowrank import LowRank, features
from steno.weights.rtn import Rtn


def problem(rows: int, columns: int, tokens: int = 400, seed: int = 0):
    """A weight, and correlated inputs [T, K] of which a few are far larger than the rest."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, columns)) @ rng.standard_normal((columns, columns)) * 0.1 + 1.5
    x[:, ::7] *= 20
    return rng.standard_normal((rows, columns)).astype(np.float32), x


def spread(x: np.ndarray) -> np.ndarray:
    return np.cov(x.T, bias=True)


@pytest.mark.parametrize(("rows", "columns"), [(24, 40), (40, 24), (32, 32)])
def test_full_rank_is_exact(rows, columns):
    w, x = problem(rows, columns)
    basis, _ = features(w, spread(x), 0.01)
    assert np.abs(basis @ (basis.T @ w) - w).max() < 1e-5


@pytest.mark.parametrize("rank", [1, 3, 8, 17])
@pytest.mark.parametrize(("rows", "columns"), [(24, 40), (40, 24)])
def test_the_error_is_the_energy_left_out(rows, columns, rank):
    w, x = problem(rows, columns)
    basis, energies = features(w, spread(x), 1e-9)
    y = (x - x.mean(0)) @ w.T.astype(np.float64)
    lost = ((y - y @ basis[:, :rank] @ basis[:, :rank].T) ** 2).sum(1).mean()
    assert lost == pytest.approx(energies[rank:].sum(), rel=1e-6)
    assert y.var(0).sum() == pytest.approx(energies.sum(), rel=1e-6)


@pytest.mark.parametrize("damp", [1e-9, 0.01, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_never_worse_than_the_plain_svd(seed, damp):
    """With any damping: the SVD of W is the best for the part that damping adds, so it must lose on the text's part."""
    w, x = problem(32, 48, tokens=20 + 100 * seed, seed=seed)
    y = (x - x.mean(0)) @ w.T.astype(np.float64)
    basis, _ = features(w, spread(x), damp)
    plain = np.linalg.svd(w.astype(np.float64))[0]
    for rank in (1, 2, 4, 8, 16, 31):
        ours, theirs = (((y - y @ b[:, :rank] @ b[:, :rank].T) ** 2).sum() for b in (basis, plain))
        assert ours <= theirs * (1 + 1e-9) + 1e-9


def test_a_planted_low_rank_under_outliers_is_found():
    """The directions that carry the outputs are few; the weight is dominated by columns that no input excites."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 4)) @ rng.standard_normal((4, 96))
    w[:, 60:] = rng.standard_normal((64, 36)) * 10
    x = rng.standard_normal((600, 96))
    x[:, 60:] *= 1e-3
    x[:, 5] *= 30
    y = (x - x.mean(0)) @ w.T
    basis, _ = features(w.astype(np.float32), spread(x), 1e-6)
    plain = np.linalg.svd(w)[0]
    ours, theirs = (((y - y @ b[:, :4] @ b[:, :4].T) ** 2).sum() / (y**2).sum() for b in (basis, plain))
    assert ours < 1e-3
    assert theirs > 0.1


def test_inputs_that_never_move_are_no_trouble():
    w, _ = problem(16, 24)
    basis, energies = features(w, np.zeros((24, 24)), 0.01)
    assert np.isfinite(basis).all()
    assert np.abs(basis @ (basis.T @ w) - w).max() < 1e-5
    assert energies.sum() > 0


def test_a_worked_budget():
    """Two 32 x 32 layers, 64 parameters per rank: one needs 8 ranks, the other's energy is flat, so it stays dense."""
    steep = choices(32, 32, 0, np.array([1.0] * 8 + [0.0] * 24))
    flat = choices(32, 32, 0, np.ones(32))
    assert [c.rank for c in steep] == [8, 0]
    assert [c.cost for c in flat] == [8 * 64, 32 * 32]
    assert [c.rank for c in share([steep, flat], 512 + 1024)] == [8, 0]
    assert [c.rank for c in share([steep, flat], 1024)] == [8, 8]
    assert share([steep, flat], 1023) is None


def test_errors_weigh_by_the_size_of_the_layer():
    """Equal spectra in layers of unequal size cost and save in proportion, so neither is starved for the other."""
    energies = np.arange(1, 65.0) ** -2
    small, large = choices(64, 64, 0, energies), choices(64, 256, 0, energies)
    assert large[0].error == pytest.approx(4 * small[0].error)
    assert [c.rank for c in share([small, large], 16 * 128 + 16 * 320)] == [16, 16]


shapes = st.tuples(st.integers(4, 80), st.integers(4, 80), st.floats(0.0, 3.0), st.sampled_from([0, 1]))


@settings(max_examples=60, deadline=None)
@given(st.lists(shapes, min_size=1, max_size=6), st.floats(0.05, 1.0))
def test_the_budget_is_met_within_one_step(layers, keep):
    options = [choices(n, k, n * biased, np.arange(1, min(n, k) + 1.0) ** -decay) for n, k, decay, biased in layers]
    budget = keep * sum(n * k for n, k, _, _ in layers)
    found = share(options, budget)
    if found is None:
        assert sum(o[0].cost for o in options) > budget
        return
    left = budget - sum(c.cost for c in found)
    assert left >= 0
    for own, chosen in zip(options, found, strict=True):
        index = own.index(chosen)
        assert chosen.rank % STEP == 0
        if index + 1 < len(own):
            assert own[index + 1].cost - chosen.cost > left, "another step would have fitted"


def test_the_shares_are_the_best_there_are():
    """Against every combination, where the steps' sizes are equal and the curves convex."""
    from itertools import product

    rng = np.random.default_rng(4)
    options = [choices(64, 64, 0, np.sort(rng.random(64) ** p)[::-1])[:-1] for p in (1, 4, 16)]
    budget = 9 * 8 * 128
    found = share(options, budget)
    assert found is not None
    every = [sum(c.error for c in row) for row in product(*options) if sum(c.cost for c in row) <= budget]
    assert sum(c.error for c in found) == pytest.approx(min(every))


def moments_by_hand(net, module: str, texts) -> np.ndarray:
    seen = []
    handle = net.get_submodule(module).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for row in texts:
            net(torch.tensor([row]))
    handle.remove()
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in seen]).double().numpy()


@pytest.mark.parametrize("room", [1 << 30, 1])
def test_moments_are_those_of_the_inputs_in_one_pass_or_many(model, texts, monkeypatch, room):
    monkeypatch.setattr("steno.weights._moments.PASS_BYTES", room)
    net = AutoModelForCausalLM.from_pretrained(model("llama"))
    names = [n for n, m in net.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    found = dict(collect(model("llama"), names, texts, lambda *_: None))
    assert list(found) == names
    for name in names:
        x = moments_by_hand(net, name, texts)
        mean, cov = found[name].covariance(True)
        assert found[name].count == len(x) == sum(map(len, texts))
        assert np.allclose(mean, x.mean(0), atol=1e-6)
        assert np.allclose(cov, spread(x), atol=1e-6)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "llama-bias", "qwen3", "gemma2", "phi3", "opt", "mixtral"])
def test_the_folder_loads_as_what_its_factors_mean(model, texts, tmp_path, name, center):
    out = tmp_path / "out"
    ledger = LowRank(keep=0.7, center=center).apply(model(name), out, calibration=texts)
    stored = load_file(out / "model.safetensors")
    net = AutoModelForCausalLM.from_pretrained(model(name))
    for layer in ledger.layers:
        module = net.get_submodule(layer.name)
        module.weight.data = stored[f"{layer.name}.weight_b"] @ stored[f"{layer.name}.weight_a"]
        bias = stored.get(f"{layer.name}.bias")
        assert (bias is None) == (not center and module.bias is None)
        module.bias = None if bias is None else torch.nn.Parameter(bias)
    config = json.loads((out / "config.json").read_text())
    assert is_low_rank(config)
    settings_, cls = resolve(config)
    ours, report = cls.from_pretrained(out, config=settings_, output_loading_info=True)
    assert not any(report.values()), report
    stock, report = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        want, got, same = net(ids()).logits, ours(ids()).logits, stock(ids()).logits
    assert torch.allclose(got, want, atol=1e-5)
    assert torch.equal(got, same)


def test_without_trust_loading_is_refused_and_never_silently_wrong(model, texts, tmp_path):
    LowRank(keep=0.7).apply(model("llama"), tmp_path / "out", calibration=texts)
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)


@pytest.mark.parametrize("name", ["llama", "llama-bias"])
def test_the_ledgers_errors_are_those_of_the_outputs(model, texts, tmp_path, name):
    ledger = LowRank(keep=0.7, damp=1e-9).apply(model(name), tmp_path / "out", calibration=texts)
    net = AutoModelForCausalLM.from_pretrained(model(name))
    stored = {k: v.double().numpy() for k, v in load_file(tmp_path / "out" / "model.safetensors").items()}
    assert len(ledger.layers) > 4
    for layer in ledger.layers:
        x = moments_by_hand(net, layer.name, texts)
        module = net.get_submodule(layer.name)
        old = 0 if module.bias is None else module.bias.detach().double().numpy()
        y = x @ module.weight.detach().double().numpy().T + old
        got = x @ stored[f"{layer.name}.weight_a"].T @ stored[f"{layer.name}.weight_b"].T + stored[f"{layer.name}.bias"]
        error = np.sqrt(((y - got) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())
        assert layer.error == pytest.approx(error, rel=1e-3)
        assert np.allclose(got.mean(0), y.mean(0), atol=1e-4), "the bias keeps the mean output"


@pytest.mark.parametrize("keep", [0.4, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("center", [True, False])
def test_what_is_kept_is_what_was_asked(model, texts, tmp_path, keep, center):
    ledger = LowRank(keep=keep, center=center).apply(model("llama"), tmp_path / "out", calibration=texts)
    net = AutoModelForCausalLM.from_pretrained(model("llama"))
    linear = {n: m for n, m in net.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    total = sum(m.weight.numel() for m in linear.values())
    compressed = {layer.name for layer in ledger.layers}
    kept = ledger.parts()["factors"] // 4 + ledger.parts().get("bias", 0) // 4
    kept += sum(m.weight.numel() for n, m in linear.items() if n not in compressed)
    assert keep * total - max(STEP * sum(m.weight.shape) for m in linear.values()) < kept <= keep * total


def test_keeping_everything_changes_nothing(model, texts, tmp_path):
    ledger = LowRank(keep=1.0).apply(model("llama"), tmp_path / "out", calibration=texts)
    assert ledger.layers == ()
    before, after = (load_file(p / "model.safetensors") for p in (model("llama"), tmp_path / "out"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_an_eight_bit_model_can_be_factored(model, texts, tmp_path):
    Rtn(embeddings=True).apply(model("llama-tied", torch.bfloat16), tmp_path / "q8")
    LowRank(keep=0.7).apply(tmp_path / "q8", tmp_path / "out", calibration=texts)
    net, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, output_loading_info=True
    )
    assert not any(report.values()), report
    assert net.dtype == torch.bfloat16


def test_bad_calibration_is_refused(model, tmp_path):
    source, out = model("llama"), tmp_path / "out"
    for texts, words in [
        (None, "needs calibration texts"),
        ([], "needs calibration texts"),
        ([[1, 2], []], "text 2 is empty"),
        ([[1, VOCAB]], f"outside the model's {VOCAB}"),
        ([[-1]], "outside the model"),
        ([[1] * 65], r"65 tokens, the model's context is 64"),
    ]:
        with pytest.raises(PromptError, match=words):
            LowRank().apply(source, out, calibration=texts)
    assert not list(tmp_path.iterdir())


def test_too_small_a_budget_says_the_least(model, texts, tmp_path):
    with pytest.raises(KnobError, match=r"keep=0.05 is below .*--set weights\.lowrank\.keep="):
        LowRank(keep=0.05).apply(model("llama"), tmp_path / "out", calibration=texts)
    assert not list(tmp_path.iterdir())


def test_a_damaged_record_is_a_model_error():
    with pytest.raises(ModelError, match="steno_lowrank record cannot be used"):
        resolve({"steno_lowrank": {"base": "no-such-model", "ranks": {}, "center": True}})
