"""What may be learned from, what is held out, and that the two never meet."""

import json
from email.message import Message
from pathlib import Path

import pytest
from made_up import program

from steno.train import _clean, corpus, recipe, sources
from steno.train._licence import copyleft_header, permissive
from steno.train.base import Document, RecipeError
from steno.train.recipe import Bucket, Source


def document(path: str, text: str, bucket: str = "code", source: str = "s") -> Document:
    return Document(source=source, path=path, bucket=bucket, licence="MIT", text=text)


def metadata(**fields: str) -> Message:
    message = Message()
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"License_Expression": "MIT"}, "MIT"),
        ({"License_Expression": "MPL-2.0 AND MIT"}, None),
        ({"License_Expression": "GPL-3.0-only OR MIT"}, "GPL-3.0-only OR MIT"),
        ({"License_Expression": "Apache-2.0 WITH LLVM-exception"}, "Apache-2.0 WITH LLVM-exception"),
        ({"Classifier": "License :: OSI Approved :: BSD License", "License": "whatever"}, "BSD"),
        ({"Classifier": "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"}, None),
        ({"License": "Apache License 2.0"}, "Apache-2.0"),
        ({"License": "Proprietary"}, None),
        ({}, None),
    ],
)
def test_only_plainly_permissive_licences_pass(fields: dict[str, str], answer: str | None) -> None:
    assert permissive(metadata(**fields)) == answer


def test_a_copyleft_header_overrules_its_package() -> None:
    assert copyleft_header("# Licensed under the GNU General Public License\nimport os\n")
    assert not copyleft_header("# MIT licensed\n")


def test_generated_minified_and_data_like_files_are_left_out() -> None:
    good = program(1)
    assert _clean.worth_reading(document("a.py", good))
    assert not _clean.worth_reading(document("a.py", "# DO NOT EDIT\n" + good))
    assert not _clean.worth_reading(document("a.py", good + "x" * 3000))
    assert not _clean.worth_reading(document("a.py", "TABLE = [\n" + "    12345, 67890, 11111,\n" * 400 + "]\n"))
    assert not _clean.worth_reading(document("a.py", "x = 1\n"))


def test_held_out_files_do_not_depend_on_order_or_machine() -> None:
    documents = [document(f"f{n}.py", program(n)) for n in range(12)]
    bucket = Bucket(name="code", weight=1.0, hold_out_files=3, hold_out_min_file=100)
    chosen = corpus.hold_out(documents, bucket)
    assert len(chosen) == 3
    assert corpus.hold_out(documents[::-1], bucket) == chosen
    more = corpus.hold_out(documents, Bucket(name="code", weight=1.0, hold_out_bytes=10_000, hold_out_min_file=100))
    assert sum(len(d.text) for d in more) >= 10_000


def test_near_copies_of_held_out_files_are_dropped() -> None:
    secret, other = program(1), program(2)
    lines = secret.split("\n")
    third = "\n".join(lines[: len(lines) // 3])
    train = [
        document("same.py", secret),
        document("renamed.py", other + "\n" + third),
        document("piece.py", "\n".join(lines[:10])),
        document("other.py", other),
        document("other_again.py", other.replace("total", "sum", 3)),
        document("new.py", program(3)),
    ]
    kept, dropped = _clean.without_copies(train, _clean.HeldOut([document("held.py", secret)]))
    assert [d.path for d in kept] == ["other.py", "new.py"]
    assert dropped == {"near a held-out file": 3, "near a file already kept": 1}


def test_a_built_corpus_keeps_its_promises(recipe_file: Path, tmp_path: Path) -> None:
    plan = recipe.load(recipe_file)
    manifest = corpus.build(plan, tmp_path)
    train = list(corpus.load(tmp_path, "train"))
    valid = list(corpus.load(tmp_path, "valid"))
    assert len(valid) == 3
    assert not {d.name for d in train} & {d.name for d in valid}
    assert manifest["buckets"]["code"]["files"] == len(train)  # type: ignore[index]
    assert manifest["buckets"]["code"]["bytes"] == sum(len(d.text.encode()) for d in train)  # type: ignore[index]
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    assert str(recipe_file.parent) not in (tmp_path / "manifest.json").read_text()


def test_caps_hold(recipe_file: Path, tmp_path: Path) -> None:
    plan = recipe.load(recipe_file)
    text = recipe_file.read_text().replace("weight = 1.0", "weight = 1.0\ncap_mb = 0.01")
    (tmp_path / "capped.toml").write_text(text)
    manifest = corpus.build(recipe.load(tmp_path / "capped.toml"), tmp_path / "out")
    assert manifest["buckets"]["code"]["bytes"] <= 10_000  # type: ignore[index]
    assert plan.bucket[0].cap_mb > 1


def test_a_missing_source_is_reported_and_the_rest_goes_on(recipe_file: Path, tmp_path: Path) -> None:
    extra = (
        '[[source]]\nname = "away"\nkind = "files"\nbucket = "code"\npath = "$NOT_SET_ANYWHERE/x"\nlicence = "MIT"\n'
    )
    (tmp_path / "r.toml").write_text(recipe_file.read_text().replace("[[bucket]]", extra + "[[bucket]]", 1))
    assert corpus.build(recipe.load(tmp_path / "r.toml"), tmp_path / "out")["missing_sources"] == ["away"]
    alone = recipe_file.read_text().replace('path = "', 'path = "/nowhere')
    (tmp_path / "r.toml").write_text(alone)
    with pytest.raises(RecipeError, match="none of its sources was found; made-up"):
        corpus.build(recipe.load(tmp_path / "r.toml"), tmp_path / "out")


def test_the_standard_library_is_a_source() -> None:
    found, licences = sources.read(Source(name="stdlib", kind="stdlib", bucket="stdlib"))
    paths = {d.path: d.bucket for d in found}
    assert paths["argparse.py"] == "stdlib"
    assert all("site-packages" not in path for path in paths)
    assert licences == {"stdlib": "PSF-2.0"}
    assert sources.is_test("pkg/tests/data.py")
    assert sources.is_test("pkg/test_x.py")
    assert not sources.is_test("pkg/contest.py")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("layers = 2", "layer = 2"), r"unknown key 'layer'. Did you mean layers"),
        (("layers = 2", 'layers = "2"'), r"layers: must be of type int; got '2'"),
        (("layers = 2\n", ""), "'layers'; add it"),
        (("ffn = 96", "ffn = 100"), "ffn must be a multiple of 32; got 100"),
        (("steps = 6", "steps = 0"), r"steps must lie in \[1, 1e\+09\]; got 0"),
        (("micro_batch = 2", "micro_batch = 3"), "batch must be a multiple of micro_batch"),
        (("steps = 6", 'steps = 6\ndecay = "slow"'), "decay must be one of cosine, wsd; got 'slow'"),
        (('bucket = "code"', 'bucket = "coal"'), "bucket 'coal' is not declared. Did you mean code"),
        (("steno_train = 1", "steno_train = 2"), "steno_train must be 1 for this steno; got 2"),
        (("[shape]", "[shape"), "not valid TOML"),
    ],
)
def test_a_wrong_recipe_says_what_to_change(
    recipe_file: Path, tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(recipe_file.read_text().replace(*change))
    with pytest.raises(RecipeError, match=words):
        recipe.load(path)


@pytest.mark.parametrize("name", ["nib.toml", "nib_gpu.toml"])
def test_the_shipped_recipes_are_valid_and_fit(name: str) -> None:
    plan = recipe.load(Path(recipe.__file__).with_name(name))
    shape = plan.shape
    matrices = shape.width * (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim + 3 * shape.width * shape.ffn
    assert shape.layers * matrices + plan.tokenizer.vocab * shape.width < 15_850_000
    with pytest.raises(RecipeError, match="no such file"):
        recipe.load("nowhere.toml")
