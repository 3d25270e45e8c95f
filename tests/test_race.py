"""The race's pure parts: the GGUF file is the same model, floors are judged as written, slices merge, tables say so."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"
sys.path.insert(0, str(TOOLS))

import bench  # noqa: E402
from race import arms, floors, shapes, table, workload  # noqa: E402
from race.contest import best_of  # noqa: E402
from race.ngram import Lookup  # noqa: E402

TINY = shapes.Shape(hidden=64, layers=2, heads=4, kv=2, head_dim=16, inner=96, vocab=320)

needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="the extra 'bench' is not installed")
needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="the extra 'bench' is not installed"
)


def weights():
    rng = np.random.default_rng(0)

    def normal(*size):
        return (rng.normal(size=size) * 0.2).astype(np.float32)

    q, kv = TINY.heads * TINY.head_dim, TINY.kv * TINY.head_dim
    out = {"model.embed_tokens.weight": normal(TINY.vocab, TINY.hidden), "model.norm.weight": 1 + normal(TINY.hidden)}
    for layer in range(TINY.layers):
        base = f"model.layers.{layer}"
        out |= {
            f"{base}.input_layernorm.weight": 1 + normal(TINY.hidden),
            f"{base}.post_attention_layernorm.weight": 1 + normal(TINY.hidden),
            f"{base}.self_attn.q_proj.weight": normal(q, TINY.hidden),
            f"{base}.self_attn.k_proj.weight": normal(kv, TINY.hidden),
            f"{base}.self_attn.v_proj.weight": normal(kv, TINY.hidden),
            f"{base}.self_attn.o_proj.weight": normal(TINY.hidden, q),
            f"{base}.mlp.gate_proj.weight": normal(TINY.inner, TINY.hidden),
            f"{base}.mlp.up_proj.weight": normal(TINY.inner, TINY.hidden),
            f"{base}.mlp.down_proj.weight": normal(TINY.hidden, TINY.inner),
        }
    return out


@needs_gguf
@pytest.mark.parametrize(
    ("kind", "limit"), [("f32", 0.0), ("bf16", 0.004), ("q8_0", 0.01), ("q4_0", 0.15), ("q4_0+q8_0", 0.15)]
)
def test_gguf_tensors_come_back(tmp_path, kind, limit):
    """Every tensor under its new name; the query rows back in their order; within the step of the form."""
    import gguf
    from race import gguf_file

    source = weights()
    gguf_file.write(tmp_path / "m.gguf", TINY, source, kind)
    read = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert sorted(read) == sorted(map(gguf_file.renamed, source))
    for name, want in source.items():
        tensor = read[gguf_file.renamed(name)]
        got = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(want.shape)
        for part, heads in (("q_proj", TINY.heads), ("k_proj", TINY.kv)):
            if part in name:
                pairs = got.reshape(heads, TINY.head_dim // 2, 2, TINY.hidden)
                got = np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1).reshape(want.shape)
        kept = 0.01 if "+" in kind and "embed" in name else limit
        bound = 0.0 if want.ndim == 1 else kept * np.abs(want).max()
        assert np.abs(got - want).max() <= bound, name


@needs_llama
def test_llama_cpp_computes_the_same_function(tmp_path):
    """float32 on both sides: the same logits up to rounding, so the same best tokens."""
    import race.models
    from race import gguf_file
    from race.engine_llama import Llama
    from race.engines import Steno

    race.models._write_hf(tmp_path / "hf", TINY)
    gguf_file.write(tmp_path / "m.gguf", TINY, race.models.tensors(tmp_path / "hf"), "f32")
    ids = np.random.default_rng(1).integers(3, TINY.vocab, 40).tolist()
    ours = Steno(tmp_path / "hf", "fp32", 1).logits(ids)
    theirs = Llama(tmp_path / "m.gguf", 1, flash=False).logits(ids)
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(ours).max()
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()


def test_parameters_of_a_shape():
    assert shapes.SHAPES["110M"].parameters == sum(
        [32000 * 768, 768, 12 * (2 * 768 + 768 * 64 * (12 + 4 + 4 + 12) + 3 * 768 * 2048)]
    )
    assert TINY.parameters == sum(w.size for w in weights().values())


def test_forms_meet_peers_of_as_many_bits():
    assert [shapes.like(form) for form in ("fp32", "bf16", "int8", "int4", "int4-128", "int2")] == [
        "f32", "bf16", "q8_0", "q4_0+q8_0", "q4_0+q8_0", None,
    ]  # fmt: skip
    head = TINY.vocab * TINY.hidden
    body = TINY.parameters - head
    assert TINY.weight_bytes("int8") == body + head
    assert TINY.weight_bytes("int4") == body * 4.5 / 8 + head
    assert TINY.weight_bytes("q4_0+q8_0") == body * 4.5 / 8 + head * 8.5 / 8
    from steno.models.base import WEIGHTS

    assert {arm.form for arm in arms.arms() if arm.engine == "steno"} == set(WEIGHTS) - {"auto"}


def record(ours=2.0, peer=4.0):
    def tally(seconds):
        return {"tokens": 100, "seconds": seconds, "passes": 50, "drafted": 80, "accepted": 50}

    row = {
        "ms": ours, "roof_ms": 1.6, "prefill_per_s": 900.0, "first_s": 0.5, "load_s": 0.1,
        "peak_bytes": 3e8, "held_bytes": 1.2e8, "needed_bytes": 1.1e8, "greedy_ms": 2.0, "sampled_ms": 2.2,
        "width_ms": {"1": 2.0, "2": 2.1, "4": 2.4, "8": 3.0, "16": 5.0, "32": 9.0},
    }  # fmt: skip
    other = {"ms": peer, "roof_ms": 1.7, "prefill_per_s": 500.0, "peak_bytes": 2e8}
    arms = {
        "steno plain": tally(4.0), "steno tuned": tally(1.0), "llama.cpp plain": tally(5.0),
        "llama.cpp n-gram": tally(1.8),
    }  # fmt: skip
    return {
        "commit": "abc", "threads": 2, "machine": {"cpu": "A processor", "isa": "scalar"},
        "shapes": {"110M": {"rows": {"steno int8": row, "llama.cpp q8_0": other}}},
        "replay": {"110M": {"form": "int8", "kinds": {"tau-bench": arms}, "total": arms}},
    }  # fmt: skip


def test_floors_are_judged_as_written():
    verdicts = {(v.floor.what, v.floor.shape): v for v in floors.judge(record())}

    def judged(what):
        verdict = verdicts[what, "110M"]
        return verdict.value, verdict.met

    assert judged(floors.INT8) == (2.0, True)
    assert judged(floors.INT4) == (None, None)
    assert judged(floors.ROOF) == (1.25, True)
    assert judged(floors.WIDE) == (1.5, True)
    assert judged(floors.PREFILL) == (1.8, False)
    assert judged(floors.SAMPLING) == (1.1, False)
    assert judged(floors.MEMORY) == (pytest.approx(1.2 / 1.1), True)
    assert judged(floors.REPLAY) == (5.0, True)
    assert judged(floors.NGRAM) == (1.8, False)
    assert verdicts[floors.INT8, "500M"].met is None


def test_the_summary_counts_misses():
    measured = [v for v in floors.judge(record(peer=3.0)) if v.value is not None]
    missed = sum(not v.met for v in measured)
    text = table.render(record(peer=3.0))
    assert f"{len(measured) - missed} met, {missed} missed, {len(floors.FLOORS) - len(measured)} not measured" in text
    assert text.count("| MISSED |") == missed == 4


def test_the_readme_names_the_machine_and_every_arm():
    text = table.readme(record())
    assert "A processor, 2 threads, scalar; commit abc" in text
    assert "| 110M | llama.cpp q8_0 | 4.000 | 2.00 |" in text
    assert "| 110M | tau-bench | steno tuned int8 | 100.0 | 4.00 | 2.00 | 62 % |" in text


def test_the_better_way_of_running_a_peer_counts():
    one = {"ms": 3.0, "prefill_per_s": 10.0, "options": "", "width_ms": {"1": 3.0, "8": 9.0}, "version": "v"}
    two = {"ms": 4.0, "prefill_per_s": 30.0, "options": "flash", "width_ms": {"1": 2.5, "8": 12.0}, "version": "v"}
    both = best_of(one, two)
    assert (both["ms"], both["prefill_per_s"], both["width_ms"]) == (3.0, 30.0, {"1": 2.5, "8": 9.0})
    assert both["options"] == "best of: default, flash"


def test_slices_of_a_race_merge():
    old = record()
    bench._merge(old, "110M", {"rows": {"steno int8": {"ms": 1.0}, "steno int4": {"ms": 0.7}}, "failed": {}})
    bench._merge(old, "15M", {"rows": {}, "failed": {}})
    rows = old["shapes"]["110M"]["rows"]
    assert rows["steno int8"]["ms"] == 1.0
    assert rows["steno int8"]["roof_ms"] == 1.6
    assert list(rows) == ["steno int8", "llama.cpp q8_0", "steno int4"]
    assert list(old["shapes"]) == ["15M", "110M"]


def lookup_by_search(text, most, count):
    """The slow way: walk back through the text for every n."""
    for n in range(min(most, len(text) - 1), 0, -1):
        for end in range(len(text) - 1, n - 1, -1):
            if text[end - n : end] == text[-n:]:
                return text[end : end + count]
    return []


def test_lookup_is_a_search_for_the_newest_place():
    rng = np.random.default_rng(3)
    for most in (1, 2, 3):
        lookup, text = Lookup(most, 5), rng.integers(0, 4, 6).tolist()
        lookup.start(text)
        for token in rng.integers(0, 4, 200).tolist():
            lookup.extend([token])
            text.append(token)
            assert lookup.propose() == lookup_by_search(text, most, 5)


@pytest.fixture
def data(tmp_path):
    """Recordings in the shape of the real files."""
    call = {"function": {"name": "find", "arguments": '{"id": 3}'}}
    talk = [
        {"role": "system", "content": "Rules."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Who are you?"},
        {"role": "user", "content": "Three."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "{}"},
    ]
    (tmp_path / "tau-bench").mkdir()
    trials = [{"task_id": 0, "trial": trial, "traj": talk} for trial in (0, 1)]
    (tmp_path / "tau-bench" / "gpt-4o-airline.json").write_text(json.dumps(trials))
    (tmp_path / "spec-bench").mkdir()
    questions = [
        {"question_id": 1, "category": "math", "turns": ["One?", "Two?"]},
        {"question_id": 2, "category": "qa", "turns": ["No answer is known."]},
        {"question_id": 3, "category": "translation", "turns": ["Hallo"], "reference": ["Hello"]},
    ]
    (tmp_path / "spec-bench" / "question.jsonl").write_text("\n".join(map(json.dumps, questions)))
    answer = {"question_id": 1, "choices": [{"turns": ["1.", "2."]}]}
    (tmp_path / "spec-bench" / "mt_bench_reference_gpt-4.jsonl").write_text(json.dumps(answer))
    return tmp_path


def test_every_turn_goes_on_from_the_last_one(data):
    from steno.models import locate
    from steno.tokens import load

    tokenizer = load(locate("nib"))
    ((first, second),) = workload.recordings("tau-bench", data)
    assert tokenizer.decode(first.prompt) == "<system>\nRules.\n<user>\nHello.\n<assistant>\n"
    assert tokenizer.decode(first.output) == "Who are you?\n"
    assert second.prompt[: len(first.prompt + first.output)] == first.prompt + first.output
    assert tokenizer.decode(second.output) == '{"name": "find", "arguments": {"id": 3}}\n'


def test_only_questions_with_answers_are_replayed(data):
    found = [[r.name for r in talk] for talk in workload.recordings("spec-bench", data)]
    assert found == [["spec-bench 1.0", "spec-bench 1.1"], ["spec-bench 3.0"]]
    # What is tuned on is another talk than what is raced on, and a talk ends once there is enough.
    first, rest = workload.take("spec-bench", data, 1, 1)
    assert [r.name for r in first] == ["spec-bench 1.0"]
    assert [r.name for r in rest] == ["spec-bench 3.0"]


def test_without_data_the_replay_is_left_out(monkeypatch, tmp_path):
    monkeypatch.delenv("STENO_DATA", raising=False)
    assert workload.data() is None
    monkeypatch.setenv("STENO_DATA", str(tmp_path))
    assert workload.data() is None
    (tmp_path / "inference").mkdir()
    assert workload.data() == tmp_path / "inference"
