"""The search on a scripted lab: what wins, what is thrown out and why, and that stopping loses nothing."""

from pathlib import Path

import pytest
from tune_fakes import Loose, Quick, Script, defaults, units

from steno.core import Keeps, Plan
from steno.core.errors import OutputError, StenoError
from steno.measure import Outcome
from steno.tune import space
from steno.tune.arms import behind
from steno.tune.journal import Journal, Lap, Out
from steno.tune.search import Found, Goal, Search, spread

HOUR = 3600.0


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(space, "_defaults", defaults)


def hunt(lab: Script, journal: Journal | None = None, **changes: object) -> Found:
    goal = {"keep": Keeps.TOKENS, "seconds": HOUR} | {k: v for k, v in changes.items() if k not in ("count", "base")}
    count, base = changes.get("count", 8), changes.get("base", Plan())
    return Search(
        lab=lab, journal=journal or Journal.begin(None, {}), units=units(count), base=base, goal=Goal(**goal),
        backend="hf",
    ).run()  # type: ignore[arg-type]  # fmt: skip


def test_the_fastest_that_keeps_its_promise_wins_and_is_refined():
    found = hunt(Script())
    assert found.best is not None
    best = found.trials[found.best]
    assert best.label == "quick(depth=16)"
    assert best.outcome is Outcome.BEST
    assert best.speed is not None
    assert best.speed.ratio == pytest.approx(3.0)
    assert (best.compared, best.identical, best.speed.repeats) == (8, 8, 5)


def test_whoever_changes_ids_is_out_and_reported_however_fast():
    found = hunt(Script())
    (liar,) = [t for t in found.trials if t.label == "liar"]
    assert liar.outcome is Outcome.CHANGED
    assert "promises tokens, and differs from plain on" in liar.reason
    assert "at token 7" in liar.reason
    assert any("1 of" in note and "other ids than they promise" in note for note in found.notes)


def test_the_slower_than_plain_never_win():
    found = hunt(Script(speeds={"slow": lambda k: 0.7, "quick": lambda k: 0.9}))
    assert found.best is None
    assert found.baseline.speed is not None
    assert found.baseline.speed.ratio == pytest.approx(1.0)
    assert "not faster than plain beyond doubt" in [t.reason for t in found.trials]


def test_a_plan_that_fails_is_a_trial_that_failed():
    found = hunt(Script(fail="slow"))
    (slow,) = [t for t in found.trials if t.label == "slow"]
    assert (slow.outcome, slow.reason) == (Outcome.FAILED, "it does not run")
    assert found.best is not None


def test_plain_decoding_that_fails_is_an_error():
    class Broken(Script):
        def run(self, plan: Plan, unit: object) -> Lap:
            return Lap(error="no")

    with pytest.raises(StenoError, match="plain decoding fails on 'p"):
        hunt(Broken())


def test_limits_on_kl_and_bytes_are_held():
    loose = {"loose": lambda k: {8: 1.5, 4: 2.0, 2: 4.0}[k.bits]}
    free = hunt(Script(speeds=loose), keep=Keeps.NEAR)
    assert free.best is not None
    assert "loose(bits=2" in free.trials[free.best].label
    held = hunt(Script(speeds=loose), keep=Keeps.NEAR, max_kl=0.025)
    assert held.best is not None
    assert held.trials[held.best].label.startswith("loose")
    kl = held.trials[held.best].fidelity
    assert kl is not None
    assert kl.kl_mean == pytest.approx(0.02)
    (breach,) = [t for t in held.trials if t.label == "loose(bits=2)"]
    assert breach.outcome is Outcome.BREACH
    assert "KL 0.04 nats per token on the prompts, and 0.025 is allowed" in breach.reason
    small = hunt(Script(), keep=Keeps.NEAR, max_bytes=120)
    assert small.best is None or "loose" in small.trials[small.best].label
    assert any(t.outcome is Outcome.BREACH and "150 bytes" in t.reason for t in small.trials)


def test_the_peer_runs_beside_and_is_compared():
    found = hunt(Script(peer="transformers"))
    assert found.peer is not None
    assert (found.peer.identical, found.peer.compared) == (8, 8)
    assert found.peer.speed.ratio < 1


def test_interrupted_anywhere_and_resumed_it_ends_the_same(tmp_path: Path):
    whole = Script(peer="transformers")
    expected = hunt(whole)
    for stop in (0, 1, 7, 23, len(whole.calls) - 1):
        path = tmp_path / f"{stop}.jsonl"
        first = Script(peer="transformers", stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            hunt(first, Journal.begin(path, {"model": "m"}))
        second = Script(peer="transformers")
        again = hunt(second, Journal.resume(path, {"model": "m"}))
        # Nothing measured twice, nothing lost.
        assert first.calls + second.calls == whole.calls
        assert [(t.label, t.outcome) for t in again.trials] == [(t.label, t.outcome) for t in expected.trials]
        assert again.best == expected.best


def test_time_is_honoured_and_said():
    lab = Script(seconds=10.0)
    found = hunt(lab, seconds=60.0)
    assert found.seconds < 60 + 50
    assert any("Give more --minutes" in note for note in found.notes)


def test_one_prompt_and_a_fixed_slot():
    assert hunt(Script(), count=1).best is not None
    found = hunt(Script(), base=Plan((Quick(),)))
    assert [t.label for t in found.trials] == ["quick"]
    assert found.best == 0
    assert found.baseline.label == "plain"


def test_seeds_give_the_same_search():
    one, two, other = Script(), Script(), Script()
    hunt(one), hunt(two), hunt(other, seed=5)
    assert one.calls == two.calls
    assert one.calls != other.calls


def test_first_prompts_stand_for_all_categories():
    order = spread(units(9, ("a", "b", "c")), seed=0)
    assert {u[0].category for u in order[:3]} == {"a", "b", "c"}
    assert sorted(u[0].name for u in order) == sorted(u[0].name for u in units(9))


def test_behind_is_a_paired_interval():
    leader = {0: 10.0, 1: 100.0, 2: 1000.0}
    assert behind(leader, {k: v / 1.1 for k, v in leader.items()}) == pytest.approx(0.0953, abs=1e-3)
    assert behind(leader, {0: 5.0, 1: 200.0, 2: 900.0}) < 0
    assert behind({0: 2.0, 1: 2.0}, {0: 1.0, 1: 1.0}) == float("-inf")


def test_a_torn_journal_is_read_up_to_the_tear(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    journal = Journal.begin(path, {"model": "m"})
    lap = Lap(prefill_s=0.1, decode_s=0.25, decoded=3, outs=(Out(tokens=(1, 2, 3), histogram={0: 2, 4: 1}),))
    journal.put("a", lap, 0.5)
    journal.put("b", lap, 0.5)
    path.write_text(path.read_text()[:-40])
    again = Journal.resume(path, {"model": "m"})
    assert again.get("a", Lap) == (lap, 0.5)
    assert again.get("b", Lap) is None
    again.put("c", lap, 1.0)
    assert Journal.resume(path, {"model": "m"}).count == 2


def test_a_journal_of_another_search_is_refused(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    Journal.begin(path, {"model": "m", "prompts": "p"})
    with pytest.raises(OutputError, match=r"holds a search with another model \(m, now n\)"):
        Journal.resume(path, {"model": "n", "prompts": "p"})
    with pytest.raises(OutputError, match="there is no search to resume"):
        Journal.resume(tmp_path / "none" / "j.jsonl", {})
    path.write_text("junk\n")
    with pytest.raises(OutputError, match="damaged at its first line"):
        Journal.resume(path, {})


def test_labels_tell_plans_apart():
    assert space.label(Plan((Loose(bits=2), Quick(depth=8)))) == "loose(bits=2) + quick(depth=8)"
