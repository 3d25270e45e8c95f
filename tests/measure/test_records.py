"""Records survive the way to JSON and back, and damage is named."""

import json
import math

import numpy as np
import pytest

from steno.core import Keeps
from steno.core.errors import DataError
from steno.measure import (
    Bytes,
    Check,
    Fidelity,
    Machine,
    Outcome,
    Peer,
    PromptRow,
    Run,
    Span,
    Speed,
    Status,
    Trial,
    Verdict,
    from_json,
    from_plain,
    to_json,
    to_plain,
)

SPEED = Speed(
    name="plain", prompts=2, prompt_tokens=30, tokens=20, decoded=18, prefill_s=0.5, decode_s=1.5, ratio=1.0,
    ratio_low=0.9, ratio_high=1.1, repeats=3, foreign=0.25,
)  # fmt: skip
FIDELITY = Fidelity(
    texts=2, tokens=40, exact=False, top=64, kl_mean=0.01, kl_low=0.0, kl_high=0.02, kl_p50=0.001, kl_p90=0.02,
    kl_p99=0.1, kl_max=math.inf, top1=0.97, unit="byte", bits_base=2.0, bits_plan=2.01, bits_delta=0.01,
    bits_error=None, divergence=(None, 7), continued=16,
)  # fmt: skip
ROW = PromptRow(
    name="a", category="code", tokens=12, passes=4, base_per_s=5.0, per_s=20.0, identical=True,
    histogram={0: 1, 3: 3}, spans=(Span(text="def", tokens=4, drafted=3, source="suffix"),),
)  # fmt: skip
TRIAL = Trial(
    label="suffix", plan="steno = 1\n", keeps=Keeps.TOKENS, outcome=Outcome.BEST, speed=SPEED, fidelity=FIDELITY,
    bytes=Bytes(weights=10, cache={"payload": 4, "scales": 2}, cache_tokens=3), rows=(ROW,),
)  # fmt: skip
MACHINE = Machine(
    cpu="x", cores=2, memory_bytes=1, gpu="", os="Linux", python="3.11", versions={"steno": "0.1.0"}, threads=2
)
RUN = Run(
    model="nib", backend="table", weights="int8", fingerprint="ab", keep=Keeps.LAW, prompts="demo.jsonl", num_prompts=1,
    max_tokens=16, seed=0, machine=MACHINE, baseline=TRIAL, trials=(TRIAL, TRIAL), best=1,
    peers=(Peer(name="transformers", version="5", speed=SPEED, identical=1, compared=1),),
)  # fmt: skip
VERDICT = Verdict(
    model="m", backend="table", fingerprint="f", plan="", keeps=Keeps.BITS, covered="all",
    checks=(Check(name="c1", rule="r", status=Status.PASS, numbers={"tv": 0.01}),),
)  # fmt: skip


@pytest.mark.parametrize("record", [SPEED, FIDELITY, ROW, TRIAL, MACHINE, RUN, VERDICT], ids=lambda r: type(r).__name__)
def test_round_trip(record):
    again = from_json(to_json(record), type(record))
    assert again == record
    assert from_plain(to_plain(record), type(record)) == record
    json.loads(to_json(record), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_rates_follow_from_the_counts():
    assert SPEED.tokens_per_s == 10.0
    assert SPEED.decode_per_s == 12.0
    assert SPEED.prefill_per_s == 60.0
    assert SPEED.ms_per_token == 100.0
    assert SPEED.noisy
    assert ROW.speedup == 4.0
    assert ROW.tokens_per_pass == 3.0
    assert FIDELITY.identical == 1
    assert (TRIAL.identical, TRIAL.compared) == (1, 1)
    assert TRIAL.bytes is not None
    assert TRIAL.bytes.total == 16


def test_a_verdict_without_a_passed_check_is_not_passed():
    skipped = Check(name="c", rule="r", status=Status.SKIP)
    bad = Check(name="c", rule="r", status=Status.FAIL)
    good = VERDICT.checks[0]
    assert VERDICT.passed
    for checks in ((), (skipped,), (good, bad)):
        assert not Verdict(
            model="m", backend="t", fingerprint="", plan="", keeps=Keeps.BITS, covered="", checks=checks
        ).passed


def test_numpy_scalars_become_numbers():
    assert to_plain({"a": np.float64(0.5), "b": np.int32(3)}) == {"a": 0.5, "b": 3}
    with pytest.raises(TypeError, match="plain data only"):
        to_plain(object())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(steno=2), "version 2"),
        (lambda d: d.update(record="Trial"), "holds a Trial"),
        (lambda d: d["data"].update(tokns=1), "unknown field 'tokns'. Did you mean tokens"),
        (lambda d: d["data"].pop("tokens"), "lacks tokens"),
        (lambda d: d["data"].update(tokens="many"), "tokens is 'many'"),
        (lambda d: d["data"].update(histogram={"x": 1}), "no integer"),
    ],
)
def test_damage_is_named(change, words):
    data = json.loads(to_json(ROW))
    change(data)
    with pytest.raises(DataError, match=words):
        from_json(json.dumps(data), PromptRow)


def test_text_that_is_no_record():
    with pytest.raises(DataError, match="not valid JSON"):
        from_json("{", Run, "state.json")
    with pytest.raises(DataError, match="holds no steno record"):
        from_json("[1]", Run)
