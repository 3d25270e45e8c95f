"""A JSON Schema before llguidance sees it: which keywords stand in it, which are not held, and what says nothing.

llguidance refuses the keywords that it knows and lacks, but only where the schema's own draft knows them, and passes
over more without a word. Found in its sources (1.9) and by testing, and refused here: keywords of another draft,
`prefixItems` before 2020-12 or beside `additionalItems`, drafts it does not know, a schema that makes it lenient
(`x-guidance`), the format "unknown", whole numbers that a double does not hold, `minProperties` that could be met by
repeating a key, keys that stand twice.
"""

import json
from collections.abc import Iterator
from typing import cast

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None

HELD = frozenset((
    "$ref", "additionalItems", "additionalProperties", "allOf", "anyOf", "const", "enum", "exclusiveMaximum",
    "exclusiveMinimum", "format", "items", "maxItems", "maxLength", "maxProperties", "maximum", "minItems",
    "minLength", "minProperties", "minimum", "multipleOf", "oneOf", "pattern", "patternProperties", "prefixItems",
    "properties", "required", "type",
))  # fmt: skip

SILENT = frozenset((
    "$anchor", "$comment", "$defs", "$id", "$schema", "$vocabulary", "contentEncoding", "contentMediaType",
    "contentSchema", "default", "definitions", "deprecated", "description", "examples", "id", "readOnly", "title",
    "writeOnly",
))  # fmt: skip
"""What JSON Schema itself says asserts nothing."""

REFUSED = frozenset((
    "$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef", "contains", "dependencies",
    "dependentRequired", "dependentSchemas", "disallow", "divisibleBy", "else", "extends", "if", "maxContains",
    "minContains", "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems",
    "x-guidance",
))  # fmt: skip

FORMATS = frozenset((
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid",
))  # fmt: skip

COUNTS = frozenset(("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"))
"""May be written 2.0, which llguidance does not read."""

DRAFTS = {
    "json-schema.org/draft-04/schema": "http://json-schema.org/draft-04/schema#",
    "json-schema.org/draft-06/schema": "http://json-schema.org/draft-06/schema#",
    "json-schema.org/draft-07/schema": "http://json-schema.org/draft-07/schema#",
    "json-schema.org/draft/2019-09/schema": "https://json-schema.org/draft/2019-09/schema",
    "json-schema.org/draft/2020-12/schema": "https://json-schema.org/draft/2020-12/schema",
}
LATEST = DRAFTS["json-schema.org/draft/2020-12/schema"]

ONE = ("additionalItems", "additionalProperties", "items", "not", "if", "then", "else", "contains", "propertyNames",
       "unevaluatedItems", "unevaluatedProperties", "contentSchema")  # fmt: skip
MANY = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
NAMED = ("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties")


class Refused(ValueError):
    """A schema that would not be held in full. The message says where and why."""


def read(text: str) -> Json:
    """JSON as it stands. Raises Refused for what is no JSON, and for a key that stands twice in one object."""

    def once(pairs: list[tuple[str, Json]]) -> Json:
        keys = [key for key, _ in pairs]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise Refused(f"the key '{twice[0]}' stands twice in one object")
        return dict(pairs)

    def never(word: str) -> Json:
        raise Refused(f"{word} is no JSON")

    try:
        return cast(Json, json.loads(text, object_pairs_hook=once, parse_constant=never))
    except json.JSONDecodeError as error:
        raise Refused(f"it is no JSON ({error.msg} at line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise Refused("it is nested too deeply") from None


def prepared(schema: Json, ignore: frozenset[str] = frozenset()) -> tuple[dict[str, Json], list[str]]:
    """(the schema to hold, words that say nothing and so are not held: unknown keywords, formats of numbers).

    Keywords in `ignore` are taken out, and so are refused keywords that ask for nothing where they stand.
    Raises Refused with everything that would not be held.
    """
    if schema is False:
        raise Refused("the schema is false, which allows nothing")
    if schema is True:
        return {}, []
    if not isinstance(schema, dict):
        raise Refused("a schema is an object, true or false")
    draft = LATEST
    if "$schema" in schema:
        named = schema["$schema"]
        if _short(named) not in DRAFTS:
            raise Refused(f"$schema '{named}' is unknown. Known are draft-04, -06, -07, 2019-09 and 2020-12")
        draft = DRAFTS[_short(named)]
    schema = cast(dict[str, Json], json.loads(json.dumps(schema)))
    problems: list[str] = []
    unknown: dict[str, None] = {}
    for path, node in _nodes(schema, "#"):
        if path != "#" and DRAFTS.get(_short(node.get("$schema"))) == draft:
            # It says of a part what is known of the whole.
            del node["$schema"]
        while gone := [word for word in node if word in ignore or _idle(word, node)]:
            for word in gone:
                del node[word]
        for word in COUNTS & set(node):
            count = node[word]
            node[word] = int(count) if isinstance(count, float) and count.is_integer() else count
        for word in node:
            if word in REFUSED:
                problems.append(f"{word} at {path}")
            elif word not in HELD and word not in SILENT:
                unknown[word] = None
        problems += [f"{problem} at {path}" for problem in _quiet(node, draft, path)]
        if "format" in node and not _writes(node, "string"):
            unknown[f"format '{node['format']}' of what is no string"] = None
    if problems:
        words = sorted({problem.split()[0] for problem in problems})
        raise Refused(
            "these are not: " + ", ".join(dict.fromkeys(problems)) + ". Change the schema, or let keywords go: "
            f"--set 'decode.constrain.json_schema.ignore={json.dumps(words)}'"
        )
    if "$schema" in schema:
        schema["$schema"] = draft
    return schema, list(unknown)


def _short(uri: Json) -> str:
    return str(uri).partition("://")[2].rstrip("#")


def _nodes(schema: Json, path: str) -> Iterator[tuple[str, dict[str, Json]]]:
    """Every schema that is an object, with its place, outermost first."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for word in ONE:
        yield from _nodes(schema.get(word), f"{path}/{word}")
    for word in MANY:
        part = schema.get(word)
        for number, item in enumerate(part if isinstance(part, list) else []):
            yield from _nodes(item, f"{path}/{word}/{number}")
    for word in NAMED:
        part = schema.get(word)
        for name, item in part.items() if isinstance(part, dict) else []:
            yield from _nodes(item, f"{path}/{word}/{name}")


def _idle(word: str, node: dict[str, Json]) -> bool:
    """Whether a refused keyword asks for nothing where it stands."""
    value = node[word]
    match word:
        case "uniqueItems":
            most = node.get("maxItems")
            return value is False or (isinstance(most, int) and most <= 1)
        case "then" | "else":
            return "if" not in node
        case "if":
            return "then" not in node and "else" not in node
        case "minContains" | "maxContains":
            return "contains" not in node
        case "not":
            return value is False
        case "dependencies" | "dependentRequired" | "dependentSchemas":
            return value == {}
        case "propertyNames" | "unevaluatedItems" | "unevaluatedProperties":
            return value is True or value == {}
        case _:
            return False


def _quiet(node: dict[str, Json], draft: str, path: str) -> Iterator[str]:
    """What llguidance would pass over without a word."""
    if "prefixItems" in node and (draft != LATEST or "additionalItems" in node):
        yield "prefixItems (2020-12 alone has it, and without additionalItems)"
    if path != "#" and "$schema" in node:
        yield "$schema of another draft"
    if "format" in node and node["format"] not in FORMATS and _writes(node, "string"):
        yield f"format '{node['format']}' (held are {', '.join(sorted(FORMATS))})"
    least, required = node.get("minProperties"), node.get("required")
    if isinstance(least, int) and least > 1 + len(required if isinstance(required, list) else []):
        yield f"minProperties {least} (keys that are not required could repeat)"
    for word in ("const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
        for number in _numbers(node.get(word)):
            if int(float(number)) != number:
                yield f"{word} with {number} (no double holds it)"


def _writes(node: dict[str, Json], kind: str) -> bool:
    kinds = node.get("type", kind)
    return kind in (kinds if isinstance(kinds, list) else [kinds])


def _numbers(value: Json) -> Iterator[int]:
    """Whole numbers in a value."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    for part in value if isinstance(value, list) else value.values() if isinstance(value, dict) else []:
        yield from _numbers(part)
