"""`steno zip` and `steno unzip` as a user meets them: files, folders, pipes, damage, and every refusal."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import SRC, environment, steno

from steno.cli import zip as zip_verb
from steno.codecs import kinds

SOURCE = (SRC / "steno" / "core" / "rng.py").read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Text, bytes that are none, an empty file, an empty folder, a program, a name that is not ASCII."""
    root = tmp_path / "in"
    (root / "sub" / "none").mkdir(parents=True)
    (root / "a.py").write_bytes(SOURCE)
    (root / "sub" / "ünï.txt").write_text("naïve – 中文\n" * 20)
    (root / "sub" / "raw.bin").write_bytes(bytes(range(256)) * 12)
    (root / "empty").touch()
    (root / "run.sh").write_text("#!/bin/sh\necho hi\n")
    (root / "run.sh").chmod(0o755)
    return root


def tree(root: Path) -> dict[str, tuple[bytes, bool] | None]:
    return {
        str(p.relative_to(root)): None if p.is_dir() else (p.read_bytes(), os.access(p, os.X_OK))
        for p in sorted(root.rglob("*"))
    }


def pipe(*words: str, data: bytes, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "steno.cli.main", *words], input=data, capture_output=True, cwd=cwd, env=environment(),
        check=False,
    )  # fmt: skip


def test_a_folder_comes_back(folder: Path, tmp_path: Path):
    ran = steno("zip", folder, "--stats")
    assert ran.code == 0, ran.err
    assert "checked by decoding" in ran.out
    assert "3.3 MB) is not in the file" in ran.out
    assert "saved by drafts" in ran.out
    assert folder.exists()
    packed = tmp_path / "in.sz"
    assert not list(tmp_path.glob(".*"))
    ran = steno("unzip", packed, "--out", tmp_path / "out", "--stats")
    assert ran.code == 0, ran.err
    assert "every hash fits" in ran.out
    assert "passes of the model" in ran.out
    assert tree(tmp_path / "out" / "in") == tree(folder)
    listed = json.loads(steno("unzip", packed, "--list", "--json").out)
    sizes = {e["name"]: e["bytes"] for e in listed["entries"] if e["entry"] != "folder"}
    assert sizes == {f"in/{name}": len(found[0]) for name, found in tree(folder).items() if found is not None}
    assert "in/a.py" in steno("unzip", packed, "--list").out
    start = next(e["start"] for e in listed["entries"] if e["name"] == "in/a.py")
    assert steno("unzip", packed, "--range", f"{start + 3}:{start + 40}").out.encode() == SOURCE[3:40]
    tested = json.loads(steno("unzip", packed, "--test", "--json").out)
    assert tested["raw_bytes"] == listed["raw_bytes"] == sum(sizes.values())
    assert tested["written"] == []
    assert tested["passes"] <= tested["plain_passes"]


def test_one_file_beside_its_zip(tmp_path: Path):
    path = tmp_path / "a.py"
    path.write_bytes(SOURCE)
    record = json.loads(steno("zip", path, "--json", "--rm").out)
    assert record["raw_bytes"] == len(SOURCE)
    assert record["zip_bytes"] == (tmp_path / "a.py.sz").stat().st_size < 0.5 * len(SOURCE)
    assert record["model_bytes"] > 3e6
    assert not path.exists()
    assert steno("unzip", tmp_path / "a.py.sz").code == 0
    assert path.read_bytes() == SOURCE
    steno("unzip", tmp_path / "a.py.sz").refused("a.py exists already", "--force")
    assert steno("unzip", tmp_path / "a.py.sz", "--force").code == 0
    steno("zip", path).refused("a.py.sz exists already", "--force")
    assert steno("zip", path, "--force").code == 0


@pytest.mark.parametrize("data", [b"", b"\0\xff\xfe", b"hello\n", SOURCE[:700]])
def test_pipes(data: bytes, tmp_path: Path):
    packed = pipe("zip", "-", data=data, cwd=tmp_path)
    assert packed.returncode == 0, packed.stderr
    back = pipe("unzip", "-", data=packed.stdout, cwd=tmp_path)
    assert (back.returncode, back.stdout) == (0, data), back.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_user_model(tiny: Path, tmp_path: Path):
    path = tmp_path / "t.txt"
    path.write_bytes(b"some text, some more text, some text again\n" * 8 + b"\xff\x00")
    assert steno("zip", path, "--model", tiny).code == 0
    steno("unzip", tmp_path / "t.txt.sz", "--force").refused("was written with the model", "--model")
    assert steno("unzip", tmp_path / "t.txt.sz", "--force", "--model", tiny).code == 0
    assert path.read_bytes().endswith(b"again\n\xff\x00")


def test_salvage_restores_the_rest(folder: Path, tmp_path: Path):
    packed = tmp_path / "in.sz"
    assert steno("zip", folder).code == 0
    chunks = json.loads(steno("unzip", packed, "--list", "--json").out)["chunks"]
    data = bytearray(packed.read_bytes())
    assert len(chunks) >= 2
    data[-len(data) // 12 - 40] ^= 8
    packed.write_bytes(data)
    ran = steno("unzip", packed, "--out", tmp_path / "strict")
    ran.refused("is damaged", code=1)
    ran = steno("unzip", packed, "--salvage", "--out", tmp_path / "saved", "--json")
    assert ran.code == 1
    assert "is damaged" in ran.err
    found = json.loads(ran.out)
    assert found["lost"]
    before = tree(folder)
    whole = [Path(p).relative_to(tmp_path / "saved" / "in") for p in found["whole"]]
    assert whole
    for name in whole:
        assert (tmp_path / "saved" / "in" / name).read_bytes() == before[str(name)][0]  # type: ignore[index]
    cut = tmp_path / "cut.sz"
    cut.write_bytes(bytes(data[: len(data) // 2]))
    steno("unzip", cut, "--out", tmp_path / "no").refused("--salvage", code=1)
    steno("unzip", cut, "--list").refused("--salvage", code=1)


def test_refusals(folder: Path, tmp_path: Path):
    steno("zip", tmp_path / "nowhere").refused("there is no file or folder", "nowhere")
    os.mkfifo(tmp_path / "fifo")
    steno("zip", tmp_path / "fifo").refused("neither a file nor a folder")
    (folder / "closed").mkdir(mode=0)
    if os.geteuid() != 0:
        steno("zip", folder).refused("closed cannot be read")
    (folder / "closed").rmdir()
    steno("unzip", tmp_path / "nowhere.sz").refused("cannot be read")
    steno("unzip", folder / "a.py").refused("no .sz file", code=1)
    steno("zip", folder / "a.py", "--model", "table:32:0").refused("has no tokenizer")
    steno("zip", "-", "--rm").refused("stdin cannot be removed")
    steno("zip", folder, "--out", "-", "--json").refused("--out FILE")
    assert steno("zip", folder).code == 0
    packed = tmp_path / "in.sz"
    steno("unzip", packed, "--list", "--test").refused("four different jobs")
    steno("unzip", packed, "--range", "7").refused("--range takes A:B", "0:1000")
    steno("unzip", packed, "--range", "-1:7").refused("--range takes A:B")
    steno("unzip", packed, "--out", "-", "--json").refused("--out DIR")
    steno("unzip", packed, "--out", tmp_path / "o", "--max-bytes", "10").refused("--max-bytes", code=1)
    assert not list((tmp_path / "o").rglob("*.*"))


def test_links_are_named_and_keep_the_original(folder: Path, tmp_path: Path):
    (folder / "link").symlink_to("a.py")
    ran = steno("zip", folder, "--rm")
    assert ran.code == 2
    assert "left out: in/link: a symbolic link" in ran.err
    assert "nothing was removed" in ran.err
    assert (folder / "a.py").exists()


def test_a_failed_or_stopped_zip_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for error, code in ((KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)):

        def fail(*args: object, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(zip_verb, "_fill", fail)
            ran = steno("zip", folder, "--rm")
        assert ran.code == code, ran.err
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
        assert (folder / "a.py").read_bytes() == SOURCE
    assert "no space left" in ran.err


def test_a_stopped_unzip_leaves_no_half_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert steno("zip", folder).code == 0
    real, calls = kinds.Kinds.decode, []

    def stop(self: kinds.Kinds, *args: object) -> bytes:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(kinds.Kinds, "decode", stop)
    assert steno("unzip", tmp_path / "in.sz", "--out", tmp_path / "out").code == 130
    before = tree(folder)
    for path in (tmp_path / "out").rglob("*"):
        assert not path.name.endswith(".part")
        if path.is_file():
            assert before[str(path.relative_to(tmp_path / "out" / "in"))][0] == path.read_bytes()  # type: ignore[index]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", ""])
def test_names_that_lead_outside_are_refused(name: str, tmp_path: Path):
    from steno.codecs import identity
    from steno.codecs.container import Entry
    from steno.codecs.writer import Writer

    out = io.BytesIO()
    writer = Writer(out, kinds.Kinds(None), identity.header(None))
    writer.add(name, Entry.FILE, io.BytesIO(b"evil"))
    writer.close()
    (tmp_path / "x.sz").write_bytes(out.getvalue())
    ran = steno("unzip", tmp_path / "x.sz", "--out", tmp_path / "d")
    if name:
        ran.refused("outside of the folder", code=1)
        assert not list(tmp_path.rglob("evil"))
    else:
        assert (tmp_path / "d" / "x").read_bytes() == b"evil"


def test_the_folder_one_stands_in_gets_its_own_name(folder: Path, tmp_path: Path):
    assert steno("zip", ".", cwd=folder).code == 0
    assert steno("unzip", folder / "in.sz", "--out", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "in" / "a.py").read_bytes() == SOURCE
