"""Measure structured output: `python tools/schema_bench.py [--only PART] [--out FILE]`; writes docs/bench/schema.json.

Parts: `coverage` (MaskBench A: schemas held, valid instances that can be written, invalid ones that can), `suite` (the
JSON-Schema test suite, the same questions), `oracle` (masks against brute force over random finite schemas), `masks`
(time per mask at real vocabulary sizes), `writing` (nib writes: compliance, drafts, trees, beams, time per token).
The data is found through STENO_DATA (code/maskbench-a.tar.xz, code/json-schema-test-suite.tar.xz, tokenizers/); what is
not there is said and skipped. `make docs` makes the table of docs/guides/schema.md from the record.
"""

import argparse
import gzip
import itertools
import json
import os
import random
import subprocess
import sys
import tarfile
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools")]
RECORD = ROOT / "docs" / "bench" / "schema.json"
DATA = Path(os.environ.get("STENO_DATA", ROOT / "data"))
NAMES = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
STEPS = 400
"""Most values tried to look for an order of keys that a schema allows."""


@dataclass(frozen=True)
class Case:
    """A schema with instances, each of which it is said to allow or not."""

    group: str
    schema: object
    instances: tuple[tuple[object, bool], ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; repeatable; all by default")
    parser.add_argument("--out", type=Path, default=RECORD)
    args = parser.parse_args()
    record = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    for name in args.only or PARTS:
        print(f"== {name}", flush=True)
        found = PARTS[name]()
        if found is not None:
            record[name] = found
    from importlib.metadata import version

    from steno.measure.machine import here

    record["llguidance"] = version("llguidance")
    machine = here()
    record["on"] = f"{machine.cpu}, {machine.cores} cores"
    record["commit"] = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def coverage() -> dict[str, object] | None:
    """MaskBench A by group."""
    return tallied(maskbench())


def suite() -> dict[str, object] | None:
    """The JSON-Schema test suite by draft, its optional tests left out."""
    return tallied(test_suite())


def tallied(cases: list[Case]) -> dict[str, object] | None:
    from steno.core.errors import KnobError
    from steno.decode.constrain.json_schema import JsonSchema

    if not cases:
        return None
    groups: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    words = letters()
    for case in cases:
        count = groups.setdefault(case.group, Counter())
        count["schemas"] += 1
        try:
            place = JsonSchema(schema=json.dumps(case.schema), whitespace=0).open(words)
        except KnobError as error:
            reasons[reason(str(error))] += 1
            empty = "nsatisfiable" in str(error) or "allows nothing" in str(error)
            # A schema that allows nothing is refused rightly.
            count["held" if empty and not any(valid for _, valid in case.instances) else "refused"] += 1
            continue
        count["held"] += 1
        for value, valid in case.instances:
            written = walk(place, dumped(value))
            straight = written is not None and written.allows(END)
            if not valid:
                count["invalid"] += 1
                count["invalid written"] += straight or any(p.allows(END) for p in orders(place, value))
            else:
                count["valid"] += 1
                count["valid as it stands"] += straight
                count["valid written"] += straight or any(p.allows(END) for p in orders(place, value))
    return {
        "groups": {name: dict(count) for name, count in sorted(groups.items())},
        "refused": dict(reasons.most_common()),
    }


def oracle(count: int = 400) -> dict[str, object]:
    """Random schemas of few texts: at every place, the mask of a small vocabulary against all texts written out."""
    import numpy as np
    from jsonschema import Draft202012Validator

    from steno.core.errors import KnobError
    from steno.decode.constrain.json_schema import JsonSchema

    rng = random.Random(4)
    merged = [
        b'{"',
        b'":',
        b'"a',
        b'a"',
        b"true",
        b"rue,",
        b"1}",
        b'},"',
        b"[]",
        b"],[",
        b"12",
        b'"b":',
        b"null",
        b",1",
    ]
    words = vocabulary([bytes([b]) for b in range(256)] + merged)
    end, seen = words.ends[0], Counter[str]()
    for _ in range(count):
        schema = finite(rng, 2)
        judge = Draft202012Validator(schema)
        texts = {dumped(value) for value in universe(schema) if judge.is_valid(value)}
        try:
            start = JsonSchema(schema=json.dumps(schema), whitespace=0).open(words)
        except KnobError:
            seen["refused, allows nothing" if not texts else "refused"] += 1
            continue
        seen["schemas"] += 1
        todo, known = [(b"", start)], {b""}
        while todo and len(known) < 3000:
            done, place = todo.pop()
            rests = [text[len(done) :] for text in texts if text.startswith(done)]
            allowed = {t for t, w in enumerate(words.table) if w and any(rest.startswith(w) for rest in rests)}
            allowed |= {end} if b"" in rests else set()
            mask = set(np.flatnonzero(place.mask()).tolist())
            seen["masks"] += 1
            seen["masks too wide"] += bool(mask - allowed)
            seen["masks too narrow"] += bool(allowed - mask)
            for token in (mask & allowed) - {end}:
                if (then := done + words.table[token]) not in known:
                    known.add(then)
                    todo.append((then, place.advance(token)))
    return dict(seen)


def masks(schemas: int = 250) -> dict[str, object] | None:
    """Microseconds per mask along valid instances, by vocabulary; what the first mask of a schema takes."""
    from steno.decode.constrain.json_schema import JsonSchema, _grammar

    cases = held(spread(maskbench(), schemas))
    if not cases:
        return None
    out: dict[str, object] = {}
    for name, table in vocabularies():
        words = vocabulary(table)
        JsonSchema().open(words).mask()
        first: list[float] = []
        each: list[float] = []
        step: list[float] = []
        for case in cases:
            value = next((value for value, valid in case.instances if valid), None)
            text = json.dumps(case.schema)
            _grammar.cache_clear()
            start = perf_counter()
            place = JsonSchema(schema=text, whitespace=1).open(words)
            place.mask()
            first.append((perf_counter() - start) * 1e3)
            for token in words.encode(dumped(value)) if value is not None else ():
                start = perf_counter()
                allowed = place.mask()[token]
                each.append((perf_counter() - start) * 1e6)
                if not allowed:
                    break
                start = perf_counter()
                place = place.advance(token)
                step.append((perf_counter() - start) * 1e6)
        out[name] = {
            "words": len(table),
            "masks": len(each),
            "mask us": percentiles(each),
            "advance us": percentiles(step),
            "first mask ms": percentiles(first),
        }
    return {"schemas": len(cases), "vocabularies": out}


def writing(schemas: int = 48, tokens: int = 160) -> dict[str, object] | None:
    """nib writes for held schemas: what comes out against `jsonschema`, drafts against none, time per token."""
    from jsonschema.validators import validator_for

    from steno.core import Plan, make_knob
    from steno.decode import Request, generate
    from steno.decode.constrain.json_schema import JsonSchema
    from steno.models import NIB, ModelSpec, load
    from steno.tokens import Words
    from steno.tokens import load as load_tokenizer

    cases = held(spread(maskbench(), schemas))
    if not cases:
        return None
    model, tokenizer = load(ModelSpec(source="nib")), load_tokenizer(NIB)
    words = Words.of(tokenizer, model.vocab, model.eos)
    warm = make_knob("decode.shape.temperature", {"temperature": 1.0})
    tree = make_knob("decode.draft.suffix", {"tree": True})
    beams = make_knob("decode.search.diverse_beam", {"groups": 2, "width": 2})
    arms: dict[str, tuple[bool, bool, tuple[object, ...]]] = {
        "free": (False, False, ()),
        "masked": (True, False, ()),
        "masked, forced spans drafted": (True, True, ()),
        "masked, spans and a suffix tree": (True, True, (tree,)),
        "sampled": (True, False, (warm,)),
        "sampled, spans and a suffix tree": (True, True, (warm, tree)),
        "beams (2 x 2)": (True, False, (beams,)),
    }
    out: dict[str, object] = {}
    first: dict[str, list[tuple[int, ...]]] = {}
    for name, (masked, spans, more) in arms.items():
        count: Counter[str] = Counter()
        seconds = 0.0
        texts: list[tuple[int, ...]] = []
        for number, case in enumerate(cases):
            knob = JsonSchema(schema=json.dumps(case.schema), spans=spans)
            prompt = tuple(tokenizer.encode(json.dumps(case.schema)[:300] + "\n\nexample = "))
            plan = Plan((*([knob] if masked else []), *more))
            most = tokens // 2 if beams in more else tokens
            request = Request(number=number, prompt=prompt, max_tokens=most, seed=1, ignore_eos=not masked)
            (done,) = generate(model, [request], plan, text=tokenizer.decode, words=words, capacity=1024)
            texts.append(done.tokens)
            seconds += done.stats.decode_s
            count["tokens"] += len(done.tokens)
            count["passes"] += done.stats.passes
            count["drafted"] += done.stats.drafted
            count["accepted"] += done.stats.accepted
            judge = validator_for(case.schema)(case.schema)
            for ids in [h.tokens for h in done.found] or [done.tokens]:
                if masked and ids[-1:] and ids[-1] in model.eos:
                    count["whole"] += 1
                    count["valid"] += judge.is_valid(json.loads(tokenizer.decode(ids[:-1])))
                else:
                    count["cut"] += 1
        kind = name.split(",")[0]
        first.setdefault(kind, texts)
        same = sum(one == two for one, two in zip(first[kind], texts, strict=True))
        out[name] = {**count, "us per token": round(seconds / count["tokens"] * 1e6, 1), "same": same}
    return {"schemas": len(cases), "arms": out}


PARTS = {"coverage": coverage, "suite": suite, "oracle": oracle, "masks": masks, "writing": writing}
END = 256


def table(record: dict) -> str:
    """The record as Markdown."""
    lines = [
        f"llguidance {record['llguidance']}, commit {record['commit']}, {record['on']}.",
        "",
        "| set | schemas | held | refused by name | valid instances | can be written | as they stand | "
        "invalid instances | can be written |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for part in ("coverage", "suite"):
        for name, c in record.get(part, {}).get("groups", {}).items():
            held_share = f"{c.get('held', 0):,} ({c.get('held', 0) / c['schemas']:.1%})"
            written = c.get("valid written", 0)
            lines.append(
                f"| {name} | {c['schemas']:,} | {held_share} | {c.get('refused', 0):,} | {c.get('valid', 0):,} | "
                f"{written:,} ({written / max(c.get('valid', 0), 1):.1%}) | {c.get('valid as it stands', 0):,} | "
                f"{c.get('invalid', 0):,} | {c.get('invalid written', 0):,} |"
            )
    if "oracle" in record:
        o = record["oracle"]
        wide, narrow = o.get("masks too wide", 0), o.get("masks too narrow", 0)
        lines += ["", f"Masks against brute force: {o['schemas']} random schemas of few texts, {o['masks']:,} masks of "
                  f"270 tokens; too wide {wide}, too narrow {narrow}."]  # fmt: skip
    if "masks" in record:
        lines += ["", "| vocabulary | words | masks | mask, median | 99 % | longest | going on | first mask |",
                  "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for name, m in record["masks"]["vocabularies"].items():
            us, step, first = m["mask us"], m["advance us"], m["first mask ms"]
            lines.append(
                f"| {name} | {m['words']:,} | {m['masks']:,} | {us['50']:.0f} us | {us['99']:.0f} us | "
                f"{us['max'] / 1e3:.1f} ms | {step['50']:.1f} us | {first['50']:.1f} ms |"
            )
    if "writing" in record:
        lines += ["", f"nib, native, {record['writing']['schemas']} schemas, greedy unless it says otherwise:", "",
                  "| arm | us per token | passes per token | whole | of these valid | cut | the same ids |",
                  "|---|---|---|---|---|---|---|"]  # fmt: skip
        for name, a in record["writing"]["arms"].items():
            lines.append(
                f"| {name} | {a['us per token']:.0f} | {a['passes'] / a['tokens']:.2f} | {a.get('whole', 0)} | "
                f"{a.get('valid', 0)} | {a.get('cut', 0)} | {a['same']} of {record['writing']['schemas']} |"
            )
    return "\n".join(lines)


def letters():
    return vocabulary([bytes([byte]) for byte in range(256)])


def vocabulary(table: list[bytes]):
    """Words of a bare table with one end token after it; texts are cut into the longest words."""
    from dataclasses import replace

    from steno.tokens import Words

    bare = Words(table=(*table, b""), ends=(len(table),), encode=list)
    return replace(bare, encode=bare.longest)


def vocabularies() -> Iterator[tuple[str, list[bytes]]]:
    from steno.models import NIB
    from steno.tokens import load

    yield "nib", [word or b"\xff" for word in load(NIB).words() or ()]
    for name in ("cl100k_base", "o200k_base"):
        path = DATA / "tokenizers" / "openai" / f"{name}.tiktoken.gz"
        if path.exists():
            lines = gzip.decompress(path.read_bytes()).splitlines()
            yield name, [b64decode(line.split()[0]) for line in lines if line]
        else:
            print(f"skipped: {path} is not there", file=sys.stderr)


def dumped(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def walk(place, data: bytes):
    """The place after `data`, byte by byte; None where it may not come."""
    for byte in data:
        if place is None or not place.allows(byte):
            return None
        place = place.advance(byte)
    return place


def orders(place, value: object, left: list[int] | None = None) -> Iterator:
    """Places after `value` with its keys in every order that is allowed, as long as the search lasts."""
    left = [STEPS] if left is None else left
    left[0] -= 1
    if left[0] < 0:
        return
    if isinstance(value, dict):
        opened = walk(place, b"{")
        yield from _keys(opened, value, tuple(value), left) if opened else ()
    elif isinstance(value, list):
        opened = walk(place, b"[")
        yield from _items(opened, value, left) if opened else ()
    elif (after := walk(place, dumped(value))) is not None:
        yield after


def _keys(place, value: dict, rest: tuple[str, ...], left: list[int]) -> Iterator:
    if not rest:
        closed = walk(place, b"}")
        yield from (closed,) if closed else ()
    for key in rest:
        comma = b"," if len(rest) < len(value) else b""
        named = walk(place, comma + dumped(key) + b":")
        for after in orders(named, value[key], left) if named else ():
            yield from _keys(after, value, tuple(k for k in rest if k != key), left)


def _items(place, rest: list, left: list[int], comma: bytes = b"") -> Iterator:
    if not rest:
        closed = walk(place, b"]")
        yield from (closed,) if closed else ()
        return
    opened = walk(place, comma)
    for after in orders(opened, rest[0], left) if opened else ():
        yield from _items(after, rest[1:], left, b",")


ATOMS = (None, True, False, "", "a", "ab", "b", 0, 1, 2, 12)


def finite(rng: random.Random, depth: int) -> dict:
    """A random schema of few texts."""
    kind = rng.choice(("enum", "range", "boolean", "pattern", "length", "array", "object", "anyOf", "allOf", "tuple"))
    if depth == 0 and kind in ("array", "object", "anyOf", "allOf", "tuple"):
        kind = "enum"
    match kind:
        case "enum":
            return {"enum": rng.sample(ATOMS, rng.randint(1, 4))}
        case "range":
            low = rng.randint(0, 6)
            limit = rng.choice(("maximum", "exclusiveMaximum"))
            schema = {"type": "integer", "minimum": low, limit: low + rng.randint(0, 14)}
            return schema | ({"multipleOf": rng.choice((2, 3))} if rng.random() < 0.3 else {})
        case "boolean":
            return {"type": ["boolean", "null"] if rng.random() < 0.5 else "boolean"}
        case "pattern":
            return {"type": "string", "pattern": rng.choice(("^a?b?$", "^[ab]{1,2}$", "^(a|ab)$", "^$"))}
        case "length":
            return {
                "type": "string",
                "pattern": "^[ab]*$",
                "minLength": rng.randint(0, 1),
                "maxLength": rng.randint(1, 2),
            }
        case "array":
            items = finite(rng, 0)
            return {"type": "array", "items": items, "minItems": rng.randint(0, 1), "maxItems": rng.randint(1, 2)}
        case "tuple":
            return {"type": "array", "prefixItems": [finite(rng, 0), finite(rng, 0)], "items": False,
                    "minItems": rng.randint(0, 2)}  # fmt: skip
        case "object":
            names = rng.sample(("a", "b", "ab"), rng.randint(1, 3))
            needed = rng.sample(names, rng.randint(0, len(names)))
            return {"type": "object", "properties": {name: finite(rng, 0) for name in names}, "required": needed,
                    "additionalProperties": False}  # fmt: skip
        case "anyOf":
            return {"anyOf": [finite(rng, depth - 1), finite(rng, depth - 1)]}
        case _:
            return {"allOf": [finite(rng, 0), finite(rng, 0)]}


def universe(schema: dict) -> list:
    """Values among which all that the schema allows are."""
    for word in ("anyOf", "allOf"):
        if word in schema:
            return [value for part in schema[word] for value in universe(part)]
    match schema.get("type"):
        case "integer":
            return list(range(25))
        case "string":
            return ["".join(v) for n in range(3) for v in itertools.product("ab", repeat=n)]
        case "array" if "prefixItems" in schema:
            one, two = (universe(part) for part in schema["prefixItems"])
            return [[], *([v] for v in one), *(list(v) for v in itertools.product(one, two))]
        case "array":
            items = universe(schema["items"])
            return [list(v) for n in range(3) for v in itertools.product(items, repeat=n)]
        case "object":
            sides = [[{}, *({name: v} for v in universe(part))] for name, part in schema["properties"].items()]
            return [{k: v for side in pick for k, v in side.items()} for pick in itertools.product(*sides)]
        case None:
            return schema["enum"]
        case _:
            return [True, False, None]


def maskbench() -> list[Case]:
    out: list[Case] = []
    for name, data in archive("maskbench-a"):
        instances = tuple((test["data"], test["valid"]) for test in data["tests"])
        group = "JME" if name.startswith("JME") else name.partition("---")[0]
        out.append(Case(group, data["schema"], instances))
    return out


def test_suite() -> list[Case]:
    out: list[Case] = []
    for name, data in archive("json-schema-test-suite"):
        parts = Path(name).parts
        if len(parts) != 3 or parts[0] != "tests" or parts[1] not in NAMES:
            continue
        uri = NAMES[parts[1]]
        for case in data:
            schema = case["schema"]
            if isinstance(schema, dict):
                schema = {"$schema": uri, **schema}
            out.append(Case(parts[1], schema, tuple((test["data"], test["valid"]) for test in case["tests"])))
    return out


def archive(name: str) -> Iterator[tuple[str, object]]:
    path = DATA / "code" / f"{name}.tar.xz"
    if not path.exists():
        print(f"skipped: {path} is not there; STENO_DATA names the folder", file=sys.stderr)
        return
    with tarfile.open(path) as files:
        for member in sorted((m for m in files if m.isfile() and m.name.endswith(".json")), key=lambda m: m.name):
            content = files.extractfile(member)
            assert content is not None
            yield member.name.removeprefix("./"), json.loads(content.read())


def spread(cases: list[Case], count: int) -> list[Case]:
    """`count` cases, the same number of every group as far as there are."""
    groups: dict[str, list[Case]] = {}
    for case in random.Random(0).sample(cases, len(cases)):
        groups.setdefault(case.group, []).append(case)
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*groups.values()))
    return [case for case in rounds if case is not None][:count]


def held(cases: list[Case]) -> list[Case]:
    from steno.core.errors import KnobError
    from steno.decode.constrain.json_schema import JsonSchema

    out: list[Case] = []
    for case in cases:
        try:
            JsonSchema(schema=json.dumps(case.schema))
        except KnobError:
            continue
        out.append(case)
    return out


def reason(message: str) -> str:
    """What a refusal named first: a keyword, or what llguidance said."""
    for mark in ("these are not: ", "it says: "):
        if mark in message:
            told = message.partition(mark)[2]
            return told.split(" at #")[0][:60] if mark[0] == "t" else told[:60]
    return message.partition("; ")[2][:60]


def percentiles(values: list[float]) -> dict[str, float]:
    ranked = sorted(values)
    if not ranked:
        return {}
    at = {str(p): round(ranked[min(len(ranked) - 1, len(ranked) * p // 100)], 3) for p in (90, 99)}
    return {"50": round(median(ranked), 3), **at, "max": round(ranked[-1], 3)}


if __name__ == "__main__":
    sys.exit(main())
