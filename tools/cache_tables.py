"""The parts of docs/caches.md that pareto.py does not make: peers in one run, and KV that is not computed again."""

import json
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
BENCH, EVIDENCE = ROOT / "docs" / "bench", ROOT / "docs" / "evidence"
Row = dict[str, Any]


def page() -> str:
    """All tables that have been measured, as Markdown; empty where none has."""
    parts = [_prefix(), _editor(), _woven()]
    told = [part for part in parts if part]
    again = ["", "## KV that is not computed again", "", *told] if told else []
    return "\n".join([*_far(), *_peers(), *again])


def _record(name: str) -> tuple[str, list[Row]]:
    path = BENCH / f"{name}.json"
    if not path.exists():
        return "", []
    data = cast(dict[str, object], json.loads(path.read_text(encoding="utf-8")))
    return str(data["on"]), cast(list[Row], data["rows"])


def _lines(heads: tuple[str, ...], rows: list[list[str]]) -> str:
    line = ["| " + " | ".join(cells) + " |" for cells in (list(heads), *rows)]
    return "\n".join([line[0], "|" + "---|" * len(heads), *line[1:], ""])


def _ms(row: Row, key: str) -> str:
    return f"{1000 * row[key]:,.1f}" if key in row else "-"


def _far() -> list[str]:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(EVIDENCE.glob("cache.*.json"))]
    rows = [row for record in found for row in record["table"] if " far " in row["bytes"]]
    if not rows:
        return []
    heads = ("cache", "bits per value", "bytes", "KL per token", "same first choice")
    return [
        "",
        "## Few bits near, everything far",
        "",
        "These keep every token as it came in another memory or in a file, which the bits leave out, so they are no",
        "rivals of the forms above.",
        "",
        _lines(heads, [[str(row[head]) for head in heads] for row in rows]),
    ]


def _peers() -> list[str]:
    on, rows = _record("cache_peers")
    if not rows:
        return []
    cells = [
        [str(row["arm"]), *([f"does not run: {row['error']}", "", "", ""] if "error" in row else _figures(row))]
        for row in rows
    ]
    return [
        "",
        "## Beside their peers",
        "",
        f"On {on} (`tools/cache_peers.py`).",
        "Divergence of 64 single steps behind the text, from the same model under a plain cache; bytes of all tensors",
        "that the cache holds at the end, per key or value number of all tokens read; time per step, library and all.",
        "",
        _lines(("cache", "bits per value", "KL per token", "same first choice", "ms per token"), cells),
    ]


def _figures(row: Row) -> list[str]:
    return [f"{row['bits']:.2f}", f"{row['kl']:.3g}", f"{row['same']:.1f} %", f"{row['ms_per_token']:.1f}"]


def _prefix() -> str:
    on, rows = _record("prefix")
    if not rows:
        return ""
    cells = [
        [
            str(row["model"]), f"{row['tokens']:,}", str(row["cache"]),
            *(_ms(row, f"{arm}_s") for arm in ("plain", "stored", "memory", "disk")),
            f"{row['held_bytes'] / 1e6:.1f}", "yes" if row["same_bits"] else "no",
        ]
        for row in rows
    ]  # fmt: skip
    heads = (
        "model", "tokens", "cache", "plain, ms", "and stored, ms", "found in memory, ms", "found on disk, ms",
        "held, MB", "same bits",
    )  # fmt: skip
    told = [
        "### A prompt that begins like an earlier one",
        "",
        f"On {on} (`tools/prefix.py`).",
        "Prefill until the first logits; all but the last 64 tokens are shared. Rows in a cache form are stored whole",
        "every 256 tokens, so up to 255 shared tokens are computed again.",
        "",
    ]
    return "\n".join([*told, _lines(heads, cells)])


def _editor() -> str:
    on, rows = _record("editor")
    if not rows:
        return ""
    cells = [
        [
            f"{row['tokens']:,}", str(row["edit"]), str(row["cache"]), _ms(row, "full_s"), _ms(row, "behind_s"),
            _ms(row, "pie_s"), f"{100 - 100 * row['pie_s'] / row.get('behind_s', row['full_s']):.0f} %",
            *(f"{row[key]:.2g}" for key in ("kl_pie", "kl_unturned", "kl_stale")), f"{row['same']:.1f} %",
        ]
        for row in rows
    ]  # fmt: skip
    heads = (
        "tokens", "edit", "cache", "all again, ms", "behind the edit, ms", "PIE, ms", "saved", "KL of PIE",
        "KL, keys not turned", "KL, old text", "same first choice",
    )  # fmt: skip
    told = [
        "### An editor session",
        "",
        f"On {on}.",
        "`tools/editor.py` says what is edited and how it is scored. KL is in nats per token over the 64 tokens behind",
        "the text, against a full pass over the new text in the same cache form. `saved` is against computing all",
        "behind the first edit again, which a cache form cannot do: there it is against all.",
        "",
    ]
    return "\n".join([*told, _lines(heads, cells)])


def _woven() -> str:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(EVIDENCE.glob("reuse.*.json"))]
    rows = [row for record in found for row in record["table"]]
    if not rows:
        return ""
    heads = tuple(rows[0])
    told = [
        "### Rows woven from known pieces",
        "",
        f"On {found[0]['on'].rpartition(', ')[0]}. `reuse.pie` gets an edit in the middle, the others four contexts",
        "that were computed apart behind a shared prefix; what follows is compared with reading it all in turn.",
        "",
    ]
    return "\n".join([*told, _lines(heads, [[str(row[head]) for head in heads] for row in rows])])
