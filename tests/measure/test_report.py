"""The report: whole, self-contained, escaped, and honest at the edges (no trials, one prompt, five hundred)."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from steno.core import Keeps
from steno.core.errors import OutputError
from steno.measure import Bytes, Fidelity, Machine, Outcome, Peer, PromptRow, Run, Span, Speed, Trial
from steno.measure.report import MOST_TEXTS, MOST_TRIALS, headline, render, write

PLAN = 'steno = 1\n\n[[knob]]\nname = "decode.draft.suffix"\n'
MACHINE = Machine(
    cpu="Some CPU", cores=8, memory_bytes=64 * 10**9, gpu="", os="Linux", python="3.11", versions={"steno": "0.1.0"}
)


def speed(name: str, ratio: float) -> Speed:
    return Speed(
        name=name, prompts=4, prompt_tokens=400, tokens=512, decoded=508, prefill_s=0.1, decode_s=1.0 / ratio,
        ratio=ratio, ratio_low=0.95 * ratio, ratio_high=1.05 * ratio, repeats=3,
    )  # fmt: skip


def row(number: int, category: str, ratio: float, *, same: bool = True, text: str = "return x") -> PromptRow:
    return PromptRow(
        name=f"prompt {number}", category=category, prompt_tokens=100, tokens=9, base_tokens=9, base_per_s=100.0,
        per_s=100.0 * ratio, identical=same, finish="length", passes=3, drafted=10, accepted=6,
        histogram={0: 1, 2: 1, 4: 1},
        spans=(Span(text=text, tokens=5, drafted=4, source="suffix"), Span(text=" + 1", tokens=1)),
    )  # fmt: skip


def trial(label: str, ratio: float, outcome: Outcome, **changes: object) -> Trial:
    base = Trial(label=label, plan=PLAN, keeps=Keeps.TOKENS, outcome=outcome, speed=speed(label, ratio))
    return replace(base, **changes)  # type: ignore[arg-type]


def fidelity(kl: float) -> Fidelity:
    return Fidelity(
        texts=4, tokens=400, exact=True, top=32, kl_mean=kl, kl_low=kl / 2, kl_high=2 * kl, kl_p50=kl, kl_p90=kl,
        kl_p99=3 * kl, kl_max=4 * kl, top1=0.991, unit="byte", bits_base=1.0, bits_plan=1.01, bits_delta=0.01,
        bits_error=0.001,
    )  # fmt: skip


def make_run(rows: int = 12, trials: int = 9, best: int | None = 0) -> Run:
    kinds = ("edit", "complete", "text")
    many = tuple(row(i, kinds[i % 3], 1.3 + 0.37 * (i % 11)) for i in range(rows))
    memory = Bytes(weights=15_900_000, cache={"payload": 4_200_000, "scales": 300_000, "open": 900_000})
    first = trial(
        "suffix + greedy", 4.31, Outcome.BEST, rows=many, bytes=memory, plan=PLAN, reason="fastest of those that hold"
    )
    others = [trial(f"lookup depth {i}", 1 + 0.31 * i, Outcome.SLOWER, reason="slower") for i in range(1, trials)]
    peer = Peer(name="transformers", version="5.23.0", speed=speed("t", 0.31), identical=9, compared=12, notes="fp32")
    return Run(
        model="nib", backend="native", weights="int8", fingerprint="ab" * 16, keep=Keeps.TOKENS, prompts="demo.jsonl",
        num_prompts=rows, max_tokens=128, seed=0, machine=MACHINE,
        baseline=trial("plain", 1.0, Outcome.KEPT, plan="steno = 1\n", rows=many, bytes=memory),
        peers=(peer,), trials=((first, *others) if trials else ()), best=best if trials else None,
        started="2026-11-21T12:00:00Z", seconds=118.0, notes=("native int8 against fp32: KL 0.0004",),
    )  # fmt: skip


class Page(HTMLParser):
    """Collects what matters: links out, scripts, unclosed tags and visible text."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.scripts = 0
        self.open: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.outside += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [v for k, v in attrs if k in ("src", "href") and v]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += data


def test_the_page_is_whole_and_asks_for_nothing():
    html = render(make_run())
    page = Page(html)
    assert page.outside == []
    assert page.open == []
    assert page.scripts == 1
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import|https?://", html)
    for words in (
        "4.31×",
        "the same tokens on 12 of 12 prompts",
        "transformers 5.23.0",
        "9 of 12",
        "Some CPU",
        "drafted by",
    ):
        assert words in page.words or words in html


def test_hostile_text_stays_text():
    evil = "</script><script>alert(1)</script>\"'<b>&amp;\x00\x1b[31m"
    run = make_run()
    nasty = replace(
        run.trials[0], label=evil, reason=evil, plan=evil, rows=(replace(row(1, evil, 2.0, text=evil), name=evil),)
    )
    run = replace(run, model=evil, prompts=evil, notes=(evil,), trials=(nasty, *run.trials[1:]))
    run = replace(run, peers=(replace(run.peers[0], name=evil, version=evil, notes=evil),))
    html = render(run)
    assert Page(html).scripts == 1
    assert '<b>&amp;"' not in html
    assert "alert(1)" in Page(html).words
    assert "\x00" not in html
    assert "\x1b" not in html


def test_drafted_spans_are_marked_with_their_source():
    html = render(make_run(rows=1))
    assert '<mark title="4 tokens drafted by suffix">return</mark> x + 1' in html


@pytest.mark.parametrize("rows, trials, best", [(0, 0, None), (1, 1, 0), (1, 0, None), (500, 300, 0), (3, 4, None)])
def test_every_size_renders(rows: int, trials: int, best: int | None):
    html = render(make_run(rows, trials, best))
    page = Page(html)
    assert page.open == []
    assert "nan" not in page.words.lower().replace("finance", "")
    if rows == 500:
        assert html.count("<details") == MOST_TEXTS
        assert f"{MOST_TEXTS} of 500 prompts are shown" in page.words
        assert f"{300 - MOST_TRIALS} more are in run.json" in page.words
        assert len(html) < 400_000
    if rows == 0:
        assert "No plan was tried." in page.words


def test_headlines():
    run = make_run()
    assert headline(run) == "4.31× the speed of plain decoding, with the same tokens on 12 of 12 prompts."
    assert headline(make_run(best=None)) == "Plain decoding stays: none of 9 plans beat it here."
    assert headline(make_run(trials=0)) == "Plain decoding stays: no plan was measured."
    near = replace(run.trials[0], keeps=Keeps.NEAR, rows=(row(1, "", 2.0, same=False),), fidelity=fidelity(0.0034))
    assert headline(replace(run, trials=(near,))) == (
        "4.31× the speed of plain decoding, at a KL of 0.0034 nats per token and 99.1 % the same first choice."
    )
    wrong = replace(run.trials[0], rows=(row(1, "", 2.0, same=False), row(2, "", 2.0)))
    assert "the same tokens on 1 of 2 prompts" in headline(replace(run, trials=(wrong,)))


def test_approximate_trials_lie_on_the_kl_scale_and_defects_are_not_drawn():
    run = make_run(trials=3)
    near = replace(run.trials[1], keeps=Keeps.NEAR, fidelity=fidelity(0.01))
    wrong = replace(run.trials[2], outcome=Outcome.CHANGED, label="broken")
    html = render(replace(run, trials=(run.trials[0], near, wrong)))
    assert "approximate: KL per token" in html
    assert "1 trial without a valid figure" in html
    picture = html[html.index("Speed against") : html.index("Prompt by prompt")]
    assert "broken" not in picture


def test_write_is_whole_or_nothing(tmp_path: Path):
    write(make_run(), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().endswith("</html>\n")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file stands where a folder"):
        write(make_run(), tmp_path / "file" / "report.html")
