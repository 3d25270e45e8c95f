"""Cache forms in the engine: the contract, what it keeps against what the hf tier keeps, forks, bytes, refusals."""

import native_tiny
import numpy as np
import pytest
from contract import CHECKS, Subject, chains
from native_tiny import chain, forest, ids

from steno.cache.affine import Affine
from steno.cache.dense import Dense
from steno.cache.half import Half
from steno.cache.window import Window
from steno.core import Keeps, KVShape, Nodes, room
from steno.core.errors import CapsError, KnobError, ModelError
from steno.models import _engine, native

torch = pytest.importorskip("torch")

FORMS = [
    Affine(key_bits=8, value_bits=8, group=16, residual=0, block=16),
    Affine(key_bits=4, value_bits=2, group=8, value_group=8, residual=8, block=8),
    Affine(key_bits=3, value_bits=3, group=12, value_group=16, residual=12, block=24),
    Affine(key_bits=2, value_bits=4, group=32, residual=0, block=32),
    Half(block=16),
    Half(residual=3, block=5),
    Window(sinks=2, window=12, block=4),
    Window(sinks=0, window=1, block=1),
]
CODED = [form for form in FORMS if not isinstance(form, Window)]
LAYERS, HEADS, GROUPS = 3, 6, 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("native-cache")
    for name in ("llama", "mistral", "llama-tied-biased", "qwen3"):
        native_tiny.make(name, root / name)
    return root


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """Memory that must not be read is NaN, and every thread is used."""
    monkeypatch.setenv("STENO_POISON", "1")
    _engine.insist_on_threads(True)
    yield
    _engine.insist_on_threads(False)


def load(folders, name="llama", weights="fp32"):
    return native.load(folders / name, weights=weights, threads=2)


def same(got, want):
    np.testing.assert_array_equal(np.asarray(got).view(np.uint32), np.asarray(want).view(np.uint32))


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_contract(folders, check, name, form):
    check(Subject(model=load(folders, name), atol=0.0, cache=form))


def tier_of(form, dim, layers=LAYERS):
    shape = KVShape(
        batch=1, layers=layers, query_heads=HEADS, key_heads=GROUPS, head_dim=dim, capacity=640,
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    return form.open(shape)


@pytest.mark.parametrize("form", [form for form in CODED if form.residual], ids=repr)
def test_keeps_the_numbers_of_the_hf_tier_in_every_layer(folders, form):
    """Just before each seal the keys and values are still open to be read; the tier is handed the same."""
    session, tier, sealed = load(folders).open(1, 200, form), tier_of(form, 8), 0
    for at, token in enumerate(ids(130), start=1):
        session.forward(chains([token]))
        before = [session._engine.kept(0, layer) for layer in range(LAYERS)]
        session.commit([[0]])
        due = form.due(at)
        for layer in range(LAYERS if due > sealed else 0):
            tier.seal(0, layer, *(torch.from_numpy(np.array(x[:, sealed:due])) for x in before[layer]))
        sealed = due
    assert sealed >= 96
    for layer in range(LAYERS):
        want_k, want_v, _ = tier.materialise(layer)
        k, v = session._engine.kept(0, layer)
        np.testing.assert_array_equal(k[:, :sealed], want_k[0].numpy())
        np.testing.assert_array_equal(v[:, :sealed], want_v[0].numpy())


@pytest.mark.parametrize("form", CODED, ids=repr)
@pytest.mark.parametrize(("name", "dim"), [("llama", 8), ("llama-tied-biased", 64), ("qwen3", 128)])
def test_keeps_the_numbers_of_the_hf_tier_in_the_first_layer(folders, form, name, dim):
    """Nothing was read from a cache below the first layer, so a dense session holds the same numbers unrounded."""
    text = ids(150)
    model = load(folders, name)
    dense, kept = model.open(1, 200), model.open(1, 200, form)
    for session in (dense, kept):
        session.prefill([text])
    due = form.due(150)
    tier = tier_of(form, dim, layers=1)
    raw = dense._engine.kept(0, 0)
    tier.seal(0, 0, *(torch.from_numpy(np.array(x[:, :due])) for x in raw))
    want_k, want_v, _ = tier.materialise(0)
    k, v = kept._engine.kept(0, 0)
    np.testing.assert_array_equal(k[:, :due], want_k[0].numpy())
    np.testing.assert_array_equal(v[:, :due], want_v[0].numpy())
    same(k[:, due:], raw[0][:, due:])
    same(v[:, due:], raw[1][:, due:])
    assert not np.array_equal(k[:, :due], raw[0][:, :due])


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_logits_are_those_of_the_hf_backend(folders, name, form):
    """The same form on transformers, token by token. A code may fall on the other side of a tie, so: close."""
    from steno.models import ModelSpec
    from steno.models import load as load_any

    text = ids(90)
    model = load(folders, name)
    other = load_any(ModelSpec(source=str(folders / name), backend="hf", threads=1))
    ours, theirs = model.open(1, 128, form), other.open(1, 128, form)
    got, want = [], []
    for session, out in ((ours, got), (theirs, want)):
        for token in text:
            out.append(np.array(session.forward(chains([token])).logits[0, 0]))
            session.commit([[0]])
    apart = np.abs(np.stack(got) - np.stack(want)).max(-1)
    dense = model.open(1, 128)
    plain = np.array(dense.forward(forest([chain(text)])).logits[0])
    effect = np.abs(np.stack(got) - plain).max(-1)
    print(f"mean {apart.mean():.1e}, worst {apart.max():.1e}; the form itself: mean {effect.mean():.1e}")
    assert np.median(apart) < 1e-3
    assert apart.mean() < (0.5 if isinstance(form, Half) else 0.2) * effect.mean()


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("length", [40, 97])
def test_attends_to_what_it_keeps(folders, form, length):
    """transformers, its cache filled with the very numbers the engine says it keeps, goes on alike."""
    import transformers

    folder = folders / "llama-tied-biased"
    net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    session = native.load(folder, weights="fp32", threads=2).open(1, 128, form)
    session.prefill([ids(length)])
    past = transformers.DynamicCache()
    for layer in range(LAYERS):
        k, v = (torch.from_numpy(np.array(x)) for x in session._engine.kept(0, layer))
        where = torch.arange(length)
        if isinstance(form, Window):
            seen = form.sees(torch.tensor(length), where)
            assert k[:, seen].isfinite().all()
            k, v = k[:, seen], v[:, seen]
        past.update(k[None], v[None], layer)
    with torch.inference_mode():
        place = torch.tensor([[length]])
        want = net(torch.tensor([[7]]), past_key_values=past, position_ids=place, use_cache=True).logits[0, -1]
    np.testing.assert_allclose(session.forward(chains([7])).logits[0, 0], want.numpy(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_room_is_that_of_the_form(folders, form):
    session = load(folders).open(1, 100, form)
    for at, token in enumerate(ids(100)):
        assert session.room()[0] == room(form, at, 100 - at)
        assert form.layout(8).due(at) == form.due(at)
        session.prefill([[token]])
    assert session.room() == (0,)


def test_a_forest_stays_within_the_room(folders):
    session = load(folders).open(1, 100, FORMS[0])
    session.prefill([ids(30)])
    assert session.room() == (2,)
    with pytest.raises(ValueError, match=r"room for 2 tokens before its cache changes form"):
        session.forward(chains(ids(3)))
    session.forward(chains(ids(2)))


def test_crop_stops_at_what_is_sealed(folders):
    session = load(folders).open(2, 100, FORMS[1])
    session.prefill([ids(30), ids(5)])
    assert not session.caps.crop
    session.crop([25, 3])
    assert session.lengths == (25, 3)
    with pytest.raises(CapsError, match="row 0 has 16 tokens sealed, so it cannot be cropped to 20"):
        session.crop([20, 3])
    session.crop([0, 3])
    assert session.lengths == (0, 3)


@pytest.mark.parametrize("form", [Dense(), Affine(residual=128), Half(residual=128), Window(window=128)], ids=repr)
def test_a_full_budget_is_dense(folders, form):
    model = load(folders)
    session, plain = model.open(1, 100, form), model.open(1, 100)
    for one in (session, plain):
        one.prefill([ids(80)])
    same(session.forward(chains(ids(9))).logits, plain.forward(chains(ids(9))).logits)
    assert (session.caps == plain.caps) == (not isinstance(form, Window))
    assert session.caps.crop
    assert session.cache_bytes() == plain.cache_bytes()


def sealed_bytes(form, tokens, dim):
    """An independent count of what `tokens` sealed tokens of one head take: payload, scales."""
    if isinstance(form, Half):
        return tokens * dim * 4, 0
    assert isinstance(form, Affine)
    channels = min(form.value_group, dim)
    scales = tokens // form.group * dim * 4 + tokens * (dim // channels) * 4
    return tokens * dim * (form.key_bits + form.value_bits) // 8, scales


@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (3, 3), (2, 2), (4, 2), (0, 0)], ids=str)
def test_bytes_are_those_of_the_storages(folders, bits):
    """Head width 64: nothing is padded, so the count is exact; open pages hold 64 tokens each."""
    form = Half(block=32) if not bits[0] else Affine(key_bits=bits[0], value_bits=bits[1], residual=0, block=32)
    session = load(folders, "llama-tied-biased").open(2, 600, form)
    session.prefill([ids(500), ids(70, 1)])
    payload, scales = (sum(x) for x in zip(*(sealed_bytes(form, n, 64) for n in (480, 64)), strict=True))
    per_head = 16 * 2 * 64 * 4
    heads = LAYERS * GROUPS
    want = {"payload": payload * heads, "scales": scales * heads, "open": 2 * 64 * 2 * 64 * 4 * heads}
    assert session.cache_bytes() == {**want, "staging": 2 * per_head * heads}


def test_a_long_capacity_costs_nothing_until_it_is_used(folders):
    model = load(folders)
    small, large = model.open(1, 64), model.open(1, 640)
    for session in (small, large):
        session.prefill([ids(30)])
    assert small.cache_bytes() == large.cache_bytes()
    assert model.open(1, 640).cache_bytes()["open"] == 0


def test_a_window_frees_what_nobody_sees(folders):
    session = load(folders).open(1, 640, Window(sinks=3, window=40, block=8))
    # Head width 8: keys are stored 8 wide, values 16.
    page = 64 * (8 + 16) * 4 * LAYERS * GROUPS
    held = set()
    for token in ids(600):
        session.prefill([[token]])
        held.add(session.cache_bytes()["open"] // page)
    assert held == {1, 2, 3}
    k, _ = session._engine.kept(0, 1)
    sealed = Window(sinks=3, window=40, block=8).due(600)
    assert np.isfinite(k[:, :3]).all()
    assert np.isnan(k[:, 3:sealed]).all()
    assert np.isfinite(k[:, sealed:]).all()


@pytest.mark.parametrize("form", [None, Affine(residual=0, block=32), Half(block=64)], ids=repr)
def test_a_fork_costs_what_it_changes(folders, form):
    """Of 300 tokens two forks share every page; who goes on first goes on in place, the other copies one page."""
    session = load(folders).open(1, 640, form)
    session.prefill([ids(300)])
    alone = session.cache_bytes()
    twins = session.fork([0, 0, 0])
    shared = twins.cache_bytes()
    assert {part: shared[part] for part in ("payload", "scales", "open")} == {
        part: alone[part] for part in ("payload", "scales", "open")
    }
    page = 64 * (8 + 16) * 4 * LAYERS * GROUPS
    twins.forward(forest([chain(ids(3)), chain(ids(3, 1)), ([], [])]))
    twins.commit([[0, 1, 2], [0, 1, 2], []])
    parted = twins.cache_bytes()
    assert parted["open"] == alone["open"] + page
    assert (parted["payload"], parted["scales"]) == (alone["payload"], alone["scales"])
    # The first fork went on in the page of the original, which therefore has to leave it when it goes on itself.
    want = load(folders).open(3, 640, form)
    want.prefill([[*ids(300), *ids(3)], [*ids(300), *ids(3, 1)], ids(300)])
    session.prefill([ids(2, 9)])
    same(twins.forward(chains([5], [6], [7])).logits, want.forward(chains([5], [6], [7])).logits)
    fresh = load(folders).open(1, 640, form)
    fresh.prefill([[*ids(300), *ids(2, 9)]])
    same(session.forward(chains([8])).logits, fresh.forward(chains([8])).logits)


def test_what_does_not_fit_is_refused(folders):
    model = load(folders)
    with pytest.raises(KnobError, match=r"value_group must divide the model's head width \(64\), got 24"):
        load(folders, "llama-tied-biased").open(1, 600, Affine(value_group=24, residual=0))

    with pytest.raises(CapsError, match=r"native backend cannot keep a cache in the form .*Use --backend hf"):
        model.open(1, 100, Dense.__new__(type("Odd", (Dense,), {"due": lambda self, n: n // 8})))


def test_numbers_beyond_float16_are_refused(tmp_path):
    import transformers

    native_tiny.make("llama-tied-biased", tmp_path)
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    net.model.layers[1].self_attn.v_proj.weight.data *= 1e6
    net.save_pretrained(tmp_path)
    for form in (Affine(residual=0, block=32), Half(block=32)):
        session = native.load(tmp_path, weights="fp32").open(1, 100, form)
        with pytest.raises(ModelError, match=r"row 0: .* beyond float16 .*Use cache\.dense"):
            session.prefill([ids(40)])


def test_positions_are_free_without_a_window(folders):
    nodes = chains([5])
    moved = Nodes(tokens=nodes.tokens, parents=nodes.parents, positions=np.full((1, 1), 3, np.int32))
    model = load(folders)
    session = model.open(1, 100, FORMS[0])
    assert session.caps.visible
    session.forward(moved)
    session = model.open(1, 100, FORMS[6])
    assert not session.caps.visible
    with pytest.raises(CapsError, match="sliding window"):
        session.forward(moved)


def test_promises(folders):
    for form in FORMS:
        caps = load(folders).open(1, 100, form).caps
        assert caps.chain_exact is caps.tree_exact is Keeps.BITS
