"""What is said of the machine, and who else is using it."""

from steno.measure.machine import Clock, _busy, here, usable_cores


def test_here_names_the_machine():
    got = here(threads=1, isa="avx2")
    assert got.cores == usable_cores() >= 1
    assert got.memory_bytes > 2**28
    assert {"steno", "numpy"} <= got.versions.keys()
    assert (got.threads, got.isa) == (1, "avx2")
    assert got.cpu
    assert here().threads == got.cores


def test_foreign_share_by_hand(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    start, end = Clock(wall=10.0, busy=100.0, own=5.0), Clock(wall=12.0, busy=106.0, own=7.0)
    # 6 s busy of which 2 s ours: 4 s of 2 s * 4 cores.
    assert end.foreign(start) == 0.5
    assert Clock(wall=12.0, busy=101.0, own=7.0).foreign(start) == 0.0
    assert Clock(wall=12.0, busy=None, own=7.0).foreign(start) is None


def test_busy_leaves_out_idle_and_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 9000 8000 4 5 6 7 8\ncpu0 1\n")
    assert _busy(stat) == 1.65
    assert _busy(tmp_path / "none") is None
