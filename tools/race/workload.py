"""The agent-like workload: recorded conversations as ids, to be replayed by every arm alike.

From `$STENO_DATA/inference`: tau-bench's airline trajectories (one trial of each task; every assistant turn is a
request whose prompt is the whole conversation so far, tool results included), and those questions of Spec-Bench that
come with an answer. Ids are nib's tokenizer's: shorter tokens than a large model's, the same text for all arms.
Parts are tokenised one by one, so that a turn's prompt is the last turn's prompt continued.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from steno.measure.replay import Recording

CONTEXT = 6144
"""Longest text that is replayed; longer turns are left out."""

KINDS = ("tau-bench", "spec-bench")


def data() -> Path | None:
    """The folder of the recordings, None where there is none."""
    named = os.environ.get("STENO_DATA", "")
    folder = Path(named) / "inference"
    return folder if named and folder.is_dir() else None


def recordings(kind: str, folder: Path) -> Iterator[list[Recording]]:
    """Conversations of a kind, each a list of turns."""
    from steno.models import locate
    from steno.tokens import load

    tokenizer = load(locate("nib"))

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text))

    if kind == "tau-bench":
        trials = json.loads((folder / "tau-bench" / "gpt-4o-airline.json").read_text(encoding="utf-8"))
        talks = [(f"tau-bench {t['task_id']}", _turns(t["traj"])) for t in trials if t["trial"] == 0]
    else:
        talks = [(f"spec-bench {number}", talk) for number, talk in _answered(folder / "spec-bench")]
    for name, talk in talks:
        ids: tuple[int, ...] = ()
        out: list[Recording] = []
        for turn, (asked, answer) in enumerate(talk):
            prompt, output = ids + encode(asked), encode(answer)
            ids = prompt + output
            if len(ids) > CONTEXT:
                break
            if len(prompt) > 1 and output:
                out.append(Recording(f"{name}.{turn}", prompt, output))
        if out:
            yield out


def take(kind: str, folder: Path, calibration: int, tokens: int) -> tuple[list[Recording], list[Recording]]:
    """Turns of about `calibration` output tokens to tune on, and of about `tokens` to race on, never of one talk."""
    talks = recordings(kind, folder)
    return _up_to(talks, calibration), _up_to(talks, tokens)


def _up_to(talks: Iterator[list[Recording]], tokens: int) -> list[Recording]:
    """Turns of the next talks until `tokens` output tokens are there; the last talk ends early."""
    out: list[Recording] = []
    count = 0
    while count < tokens:
        talk = next(talks, None)
        if talk is None:
            break
        for turn in talk:
            if count < tokens:
                out.append(turn)
                count += len(turn.output)
    return out


def _turns(messages: list[dict]) -> list[tuple[str, str]]:
    """(what came before, what the assistant wrote) per assistant turn; a tool call is written as its JSON."""
    out: list[tuple[str, str]] = []
    before = ""
    for message in messages:
        if message["role"] != "assistant":
            before += f"<{message['role']}>\n{message['content']}\n"
            continue
        calls = [call["function"] for call in message.get("tool_calls") or []]
        said = [message["content"]] if message.get("content") else []
        said += [json.dumps({"name": c["name"], "arguments": json.loads(c["arguments"])}) for c in calls]
        out.append((before + "<assistant>\n", "\n".join(said) + "\n"))
        before = ""
    return out


def _answered(folder: Path) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Questions with recorded answers: the file's own references, and GPT-4's for MT-Bench."""
    answers: dict[int, list[str]] = {}
    for line in (folder / "mt_bench_reference_gpt-4.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        answers[row["question_id"]] = row["choices"][0]["turns"]
    rows = [json.loads(line) for line in (folder / "question.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds: dict[str, list[tuple[int, list[tuple[str, str]]]]] = {}
    for row in rows:
        said = answers.get(row["question_id"]) or row.get("reference")
        if said and all(isinstance(text, str) for text in said):
            talk = [(f"<user>\n{a}\n<assistant>\n", f"{b}\n") for a, b in zip(row["turns"], said, strict=False)]
            kinds.setdefault(row["category"], []).append((row["question_id"], talk))
    # One of each category in turn, so that a short run sees them all.
    for turn in range(max(map(len, kinds.values()), default=0)):
        for talks in kinds.values():
            if turn < len(talks):
                yield talks[turn]
