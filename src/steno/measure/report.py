"""The report of a run: one HTML file with its pictures inside, that asks the network for nothing.

It is drawn whole by this file: it reads the same without scripts, on paper, in the dark and on a phone. Every text
that comes from outside (prompts, output, names) is escaped.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from steno.core import Keeps
from steno.core.files import write_text

from ._report_charts import Dot, Part, Point, Zone, bars, dots, safe, scatter, size, stack, times
from .base import Bytes, Outcome, Peer, PromptRow, Run, Trial

MOST_TRIALS = 120
MOST_TEXTS = 8
MOST_CHARACTERS = 6000
"""Caps of what is shown; where one bites, the page says so."""

PROMISES = {
    Keeps.BITS: "Logits are bit-identical to plain decoding.",
    Keeps.TOKENS: "The promise is the same token ids as plain decoding.",
    Keeps.LAW: "The promise is the same output distribution as plain decoding, not the same sample.",
    Keeps.NEAR: "The output is approximate: what changed is measured below, nothing is promised.",
}

COPY = """
document.querySelectorAll('button[data-copy]').forEach(function (b) {
  b.onclick = function () {
    navigator.clipboard.writeText(document.getElementById(b.dataset.copy).textContent).then(function () {
      b.textContent = 'copied'; setTimeout(function () { b.textContent = 'copy'; }, 1500);
    });
  };
});
"""


def write(run: Run, path: Path) -> None:
    """Write the report, whole or not at all. Raises OutputError."""
    write_text(path, render(run))


def render(run: Run) -> str:
    """The report as HTML."""
    best = run.baseline if run.best is None else run.trials[run.best]
    style = files(__package__ or "").joinpath("_report_style.css").read_text(encoding="utf-8")
    body = "".join(
        (
            _header(run, best),
            _tiles(run, best),
            _picture(run),
            _prompts(best) if run.best is not None else "",
            f'<div class="pair">{_acceptance(best)}{_memory(run, best)}</div>',
            _texts(best),
            _peers(run, best),
            _trials(run),
            _plan(best),
            _method(run),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>steno: {safe(run.model)}</title><style>{style}</style></head>"
        f"<body><main>{body}</main><script>{COPY}</script></body></html>\n"
    )


def headline(run: Run) -> str:
    """The result and its promise in one sentence."""
    if run.best is None:
        count = sum(trial.speed is not None for trial in run.trials)
        return f"Plain decoding stays: {f'none of {count} plans beat it here' if count else 'no plan was measured'}."
    best = run.trials[run.best]
    gain = f"{times(best.speed.ratio)} the speed of plain decoding" if best.speed else "Chosen without a measured speed"
    if best.compared and best.identical == best.compared:
        return f"{gain}, with the same tokens on {_of(best.identical, best.compared, 'prompt')}."
    if best.fidelity is not None:
        kl = best.fidelity.kl_mean
        return f"{gain}, at a KL of {kl:.2g} nats per token and {100 * best.fidelity.top1:.1f} % the same first choice."
    if best.keeps is Keeps.LAW:
        return f"{gain}, sampling from the same distribution."
    return f"{gain}, with the same tokens on {_of(best.identical, best.compared, 'prompt')}."


def _header(run: Run, best: Trial) -> str:
    emitted = best.speed.tokens if best.speed else sum(r.tokens for r in best.rows)
    facts = (
        f"{safe(run.model)}, {safe(run.weights)} weights on the {safe(run.backend)} backend; "
        f"{_count(run.num_prompts, 'prompt')}, {emitted:,} tokens; {safe(run.machine.gpu or run.machine.cpu)}."
    )
    return (
        f'<header><p class="brand">steno</p><h1>{safe(headline(run))}</h1>'
        f'<p class="lead">{facts} {PROMISES[best.keeps]}</p></header>'
    )


def _tiles(run: Run, best: Trial) -> str:
    tiles: list[tuple[str, str, str, str]] = []
    base = run.baseline.speed
    if best.speed and base:
        interval = f"95 % interval {best.speed.ratio_low:.2f} to {best.speed.ratio_high:.2f}"
        if run.best is not None:
            tiles.append(("speed-up over plain", times(best.speed.ratio), interval, "good"))
        tiles.append(
            (
                "tokens per second",
                f"{best.speed.tokens_per_s:,.0f}",
                f"plain: {base.tokens_per_s:,.0f}" if run.best is not None else "plain decoding",
                "",
            )
        )
    for peer in run.peers:
        if best.speed and peer.speed.tokens_per_s:
            ratio = best.speed.tokens_per_s / peer.speed.tokens_per_s
            note = f"{peer.speed.tokens_per_s:,.0f} tokens per second"
            tiles.append((f"over {peer.name}", times(ratio), note, "good" if ratio > 1 else ""))
    if best.compared and run.best is not None:
        kind = "good" if best.identical == best.compared else "bad" if best.keeps.covers(Keeps.TOKENS) else ""
        tiles.append(("identical prompts", f"{best.identical} of {best.compared}", "ids compared one by one", kind))
    if best.fidelity is not None:
        f = best.fidelity
        tiles.append(("KL per token", f"{f.kl_mean:.2g}", f"nats; 99th percentile {f.kl_p99:.2g}", ""))
    if best.bytes is not None:
        tiles.append(("memory", size(best.bytes.total), f"weights {size(best.bytes.weights)}, the rest KV", ""))
    cells = "".join(
        f'<div><dt>{safe(title)}</dt><dd class="{kind}">{safe(value)}<small>{safe(note)}</small></dd></div>'
        for title, value, note, kind in tiles
    )
    return f'<dl class="tiles">{cells}</dl>' if cells else ""


def _picture(run: Run) -> str:
    points = [Point(label="plain", speedup=1.0, zone=Zone.SAME, kind="base", note="plain decoding: the baseline")]
    hidden = 0
    for number, trial in enumerate(run.trials):
        if trial.speed is None or trial.speed.ratio <= 0 or trial.outcome in (Outcome.CHANGED, Outcome.FAILED):
            hidden += 1
            continue
        near = trial.fidelity is not None and not trial.keeps.covers(Keeps.LAW)
        points.append(
            Point(
                label=trial.label,
                speedup=trial.speed.ratio,
                zone=Zone.KL if near else Zone.SAME,
                kl=max(trial.fidelity.kl_mean, 0.0) if trial.fidelity else 0.0,
                kind="best" if number == run.best else "trial",
                note=f"{times(trial.speed.ratio)}; {_fidelity(trial)}",
            )
        )
    for peer in run.peers:
        if peer.speed.ratio > 0:
            same = peer.identical == peer.compared
            note = f"{times(peer.speed.ratio)}; same ids on {_of(peer.identical, peer.compared, 'prompt')}"
            zone = Zone.SAME if same else Zone.OTHER
            points.append(Point(label=peer.name, speedup=peer.speed.ratio, zone=zone, kind="peer", note=note))
    keys = (("bestkey", "chosen"), ("trialkey", "tried"), ("basekey", "plain decoding"), ("peerkey", "other engines"))
    legend = "".join(f'<span><i class="{key}"></i>{name}</span>' for key, name in keys)
    left_out = f" {_count(hidden, 'trial')} without a valid figure: see the table of trials." if hidden else ""
    return (
        "<section><h2>Speed against fidelity</h2>"
        f'<p class="quiet">Tokens per second over plain decoding, on a logarithmic axis. Up and to the right is '
        f"better.{left_out}</p>"
        f'<div class="figure">{scatter(points)}</div><p class="legend">{legend}</p></section>'
    )


def _prompts(best: Trial) -> str:
    rows = [
        Dot(label=r.name, group=r.category, speedup=r.speedup, same=r.identical) for r in best.rows if r.speedup > 0
    ]
    if not rows:
        return ""
    rows.sort(key=lambda r: r.group)
    return (
        "<section><h2>Prompt by prompt</h2>"
        '<p class="quiet">Speed-up of the chosen plan on each prompt. Red marks a prompt whose tokens differ.</p>'
        f'<div class="figure flat">{dots(rows)}</div></section>'
    )


def _acceptance(best: Trial) -> str:
    counts: dict[int, int] = {}
    for row in best.rows:
        for accepted, passes in row.histogram.items():
            counts[accepted] = counts.get(accepted, 0) + passes
    passes = sum(r.passes for r in best.rows)
    tokens = sum(r.tokens for r in best.rows)
    drafted, accepted = sum(r.drafted for r in best.rows), sum(r.accepted for r in best.rows)
    told = ""
    if passes and drafted:
        told = (
            f'<p class="quiet">{tokens / passes:.2f} tokens per pass of the model; '
            f"{100 * accepted / drafted:.0f} % of {drafted:,} drafted tokens were accepted.</p>"
        )
    return f"<section><h2>Drafted tokens accepted per pass</h2>{told}{bars(counts if drafted else {})}</section>"


def _memory(run: Run, best: Trial) -> str:
    held = [("plain", run.baseline.bytes), *([("chosen", best.bytes)] if run.best is not None else [])]
    rows = [(name, _parts(b)) for name, b in held if b is not None]
    if not rows:
        picture = '<p class="quiet">Memory was not measured in this run.</p>'
    else:
        bits = best.bytes.bits_per_value if best.bytes else None
        real = f" The cache takes {bits:.2f} bits per value, metadata included." if bits else ""
        picture = f'<p class="quiet">Live storages, each counted once.{real}</p>{stack(rows)}'
    return f"<section><h2>Bytes</h2>{picture}</section>"


def _parts(taken: Bytes) -> list[Part]:
    return [Part(label="weights", size=taken.weights), *(Part(label=f"KV {k}", size=v) for k, v in taken.cache.items())]


def _texts(best: Trial) -> str:
    rows = [r for r in best.rows if r.spans]
    if not rows:
        return ""
    shown = _spread(rows, MOST_TEXTS)
    told = f" {len(shown)} of {_count(len(rows), 'prompt')} are shown." if len(shown) < len(rows) else ""
    blocks = "".join(_one_text(row, number == 0) for number, row in enumerate(shown))
    return (
        "<section><h2>What was drafted</h2>"
        f'<p class="quiet">The output, as it came. <mark>Coloured</mark> '
        f"tokens were drafted and then confirmed by the model; it made the rest one by one.{told}</p>"
        f"{blocks}</section>"
    )


def _one_text(row: PromptRow, first: bool) -> str:
    pieces: list[str] = []
    left = MOST_CHARACTERS
    for span in row.spans:
        if left <= 0:
            pieces.append('<span class="ask"> … cut here</span>')
            break
        drafted, own = split_span(span.text[:left], span.drafted, span.tokens)
        left -= len(span.text)
        if drafted:
            told = f"{_count(span.drafted, 'token')} drafted by {safe(span.source or 'the drafter')}"
            pieces.append(f'<mark title="{told}">{safe(drafted)}</mark>')
        pieces.append(safe(own))
    share = 100 * row.accepted / row.tokens if row.tokens else 0
    told = f"{times(row.speedup)}, {share:.0f} % drafted, {row.tokens_per_pass:.1f} tokens per pass"
    return (
        f"<details{' open' if first else ''}><summary><b>{safe(row.name)}</b> <small>{told}</small></summary>"
        f'<pre class="text">{"".join(pieces)}</pre></details>'
    )


def split_span(text: str, drafted: int, tokens: int) -> tuple[str, str]:
    """The drafted and the own part of a pass's text. Characters stand in for tokens where both parts are present.

    >>> split_span("return x", 1, 1), split_span("x", 0, 1), split_span("abcd", 3, 4)
    (('return x', ''), ('', 'x'), ('abc', 'd'))
    """
    if drafted <= 0 or tokens <= 0:
        return "", text
    if drafted >= tokens:
        return text, ""
    cut = max(1, round(len(text) * drafted / tokens)) if text else 0
    return text[:cut], text[cut:]


def _peers(run: Run, best: Trial) -> str:
    base = run.baseline
    rows = [_engine("plain decoding", base, run.best is None)]
    if run.best is not None:
        rows.append(_engine(f"steno tuned: {best.label}", best, True))
    for peer in run.peers:
        rows.append(_peer(peer))
    return (
        "<section><h2>Beside other engines</h2>"
        '<p class="quiet">The same prompts in the same run, taken in turns on the same machine. '
        "Identical counts prompts whose token ids equal those of plain decoding.</p>"
        '<div class="scroll"><table><tr><th>engine</th><th class="n">tokens/s</th><th class="n">over plain</th>'
        f'<th class="n">identical</th><th class="n">KL</th><th class="n">bytes</th></tr>{"".join(rows)}'
        "</table></div></section>"
    )


def _engine(name: str, trial: Trial, top: bool) -> str:
    speed = trial.speed
    rate, ratio = (f"{speed.tokens_per_s:,.1f}", times(speed.ratio)) if speed else ("–", "–")
    same = f"{trial.identical} of {trial.compared}" if trial.compared else "–"
    kl = f"{trial.fidelity.kl_mean:.2g}" if trial.fidelity else "–"
    held = size(trial.bytes.total) if trial.bytes else "–"
    kind = ' class="top"' if top else ""
    return (
        f"<tr{kind}><td>{safe(name)}</td>"
        + "".join(f'<td class="n">{c}</td>' for c in (rate, ratio, same, kl, held))
        + "</tr>"
    )


def _peer(peer: Peer) -> str:
    cells = (
        f"{peer.speed.tokens_per_s:,.1f}",
        times(peer.speed.ratio),
        f"{peer.identical} of {peer.compared}" if peer.compared else "–",
        "–",
        "–",
    )
    name = f"{safe(peer.name)} {safe(peer.version)}<br><small>{safe(peer.notes)}</small>"
    return f"<tr><td>{name}</td>" + "".join(f'<td class="n">{c}</td>' for c in cells) + "</tr>"


def _trials(run: Run) -> str:
    if not run.trials:
        return '<section><h2>Trials</h2><p class="quiet">No plan was tried.</p></section>'
    places = {Outcome.BEST: 0, Outcome.KEPT: 1, Outcome.CHANGED: 2, Outcome.BREACH: 3, Outcome.FAILED: 4}
    ordered = sorted(run.trials, key=lambda t: (places.get(t.outcome, 5), -(t.speed.ratio if t.speed else 0.0)))
    rows = []
    for trial in ordered[:MOST_TRIALS]:
        ratio = times(trial.speed.ratio) if trial.speed else "–"
        within = f"<small>{trial.speed.ratio_low:.2f}–{trial.speed.ratio_high:.2f}</small>" if trial.speed else ""
        bad = trial.outcome in (Outcome.CHANGED, Outcome.FAILED)
        rows.append(
            f"<tr{' class=top' if trial.outcome is Outcome.BEST else ''}><td>{safe(trial.label)}</td>"
            f'<td class="n">{ratio}</td><td class="n">{within}</td><td>{safe(_fidelity(trial))}</td>'
            f"<td{' class=bad' if bad else ''}>{trial.outcome.value}</td>"
            f"<td><small>{safe(trial.reason)}</small></td></tr>"
        )
    cut = len(run.trials) - len(rows)
    told = f'<p class="quiet">{cut} more are in run.json.</p>' if cut > 0 else ""
    return (
        f'<section><h2>Trials</h2><p class="quiet">{_count(len(run.trials), "plan")}, best first.</p>'
        '<div class="scroll"><table><tr><th>plan</th><th class="n">over plain</th><th class="n">95 %</th>'
        f"<th>output</th><th>outcome</th><th>why</th></tr>{''.join(rows)}</table></div>{told}</section>"
    )


def _plan(best: Trial) -> str:
    return (
        '<section><button data-copy="plan">copy</button><h2>The plan</h2>'
        '<p class="quiet">Run it with <code>steno run MODEL "..." --plan plan.toml</code>, '
        "prove it with <code>steno verify MODEL --plan plan.toml</code>.</p>"
        f'<pre id="plan">{safe(best.plan)}</pre></section>'
    )


def _method(run: Run) -> str:
    m = run.machine
    versions = ", ".join(f"{k} {v}" for k, v in m.versions.items())
    facts = [
        ("model", f"{run.model}, fingerprint {run.fingerprint[:16]}"),
        ("prompts", f"{run.prompts}: {run.num_prompts}, at most {run.max_tokens} tokens each, seed {run.seed}"),
        ("asked for", f"keep {run.keep.value}"),
        ("processor", f"{m.cpu}, {m.cores} cores, {m.threads or m.cores} used, {size(m.memory_bytes)} memory"),
        ("accelerator", m.gpu),
        ("engine", f"instruction set {m.isa}" if m.isa else ""),
        ("system", f"{m.os}, Python {m.python}"),
        ("versions", versions),
        ("when", f"{run.started}, {run.seconds:.0f} s"),
    ]
    listed = "".join(f"<dt>{k}</dt><dd>{safe(v)}</dd>" for k, v in facts if v)
    notes = "".join(f"<li>{safe(note)}</li>" for note in run.notes)
    return (
        '<section><h2>How it was measured</h2><p class="quiet">Every plan and plain decoding took turns on the same '
        "prompt, so that whatever else the machine did fell on both. A rate is emitted ids over wall-clock seconds, "
        "prefill included, counted the same way for all. Plans were dropped when the paired interval of their speed "
        "lay below the leader's. The baseline is plain decoding of the same weights on the same backend.</p>"
        f'<dl class="facts">{listed}</dl>{f"<ul>{notes}</ul>" if notes else ""}</section>'
        "<footer>Written by steno. This file is whole: it loads nothing from anywhere.</footer>"
    )


def _fidelity(trial: Trial) -> str:
    if trial.fidelity is not None and not trial.keeps.covers(Keeps.LAW):
        f = trial.fidelity
        return f"KL {f.kl_mean:.2g}, {100 * f.top1:.1f} % same first choice"
    if trial.compared and trial.keeps.covers(Keeps.TOKENS):
        return f"identical on {_of(trial.identical, trial.compared, 'prompt')}"
    return "same distribution" if trial.keeps is Keeps.LAW else "–"


def _spread(rows: Sequence[PromptRow], most: int) -> list[PromptRow]:
    """At most `most` rows, taken in turns from each category."""
    groups: dict[str, list[PromptRow]] = {}
    for row in rows:
        groups.setdefault(row.category, []).append(row)
    out: list[PromptRow] = []
    while len(out) < most and any(groups.values()):
        for members in groups.values():
            if members and len(out) < most:
                out.append(members.pop(0))
    return out


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _of(part: int, whole: int, noun: str) -> str:
    return f"{part} of {_count(whole, noun)}" if part != whole or whole != 1 else f"the one {noun}"
