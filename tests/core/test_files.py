"""A write is whole or not at all, and the error says what to do."""

import errno
import os
from pathlib import Path

import pytest

from steno.core.errors import OutputError
from steno.core.files import append_line, write_bytes, write_text


def test_write_makes_folders_and_replaces(tmp_path: Path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_written_files_have_the_ordinary_mode(tmp_path: Path):
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_full_disk_leaves_the_old_file_and_no_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "plan.toml"
    write_text(path, "old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"no space left to write .*plan\.toml"):
        write_bytes(path, b"new")
    with pytest.raises(OutputError, match="no space left"):
        append_line(path, "more")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.toml"]


def test_a_file_in_the_place_of_a_folder(tmp_path: Path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="a file stands where a folder is needed"):
        write_text(tmp_path / "out" / "plan.toml", "x")
    with pytest.raises(OutputError, match="is a folder"):
        write_text(tmp_path, "x")


def test_append_adds_whole_lines(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    append_line(path, "{}")
    append_line(path, "[]")
    assert path.read_text() == "{}\n[]\n"
