"""Prompt files: JSON lines, plain text or stdin. A bad line is named by its number and the rest goes on.

JSON lines: one object per line with `prompt` (text, or token ids) or OpenAI `messages`; optional `name`, `category`,
`max_tokens`. Chosen by the endings .jsonl and .ndjson, or by a first character `{` where the ending is not .txt.

Plain text: blocks separated by blank lines, each block one prompt. Prompts that hold blank lines need JSON lines.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from steno.core.errors import ModelError, PromptError, nearest
from steno.decode.base import Request
from steno.tokens import Tokenizer

DEMO = Path(__file__).parent / "prompts" / "demo.jsonl"
"""Our own prompts: code editing, completion, free text."""

KEYS = frozenset({"prompt", "messages", "name", "category", "max_tokens"})
MOST_TOKENS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt as written. Exactly one of `text`, `ids` and `messages` is set; `line` is where it began."""

    name: str
    line: int
    category: str = ""
    text: str | None = None
    ids: tuple[int, ...] | None = None
    messages: tuple[dict[str, str], ...] | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prompt ready to run."""

    name: str
    category: str
    text: str
    request: Request


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What a file held: the prompts, and a sentence for every line or prompt that was left out."""

    prompts: tuple[Prompt, ...]
    problems: tuple[str, ...] = ()
    source: str = ""


def read(path: Path) -> Prompts:
    """Read a prompt file. Raises PromptError where it cannot be read or holds no prompt."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror or error}. Name a file, or - for stdin.") from None
    return parse(data, str(path))


def parse(data: bytes, source: str) -> Prompts:
    """The prompts of a file's bytes. Raises PromptError where it holds none.

    >>> [p.text for p in parse(b"one\\n\\ntwo\\nlines\\n", "notes.txt").prompts]
    ['one', 'two\\nlines']
    """
    text = data.decode("utf-8-sig", "replace").replace("\r\n", "\n")
    if not text.strip():
        raise PromptError(f'{source} is empty. Write one JSON object per line, such as {{"prompt": "def main():"}}')
    as_json = source.endswith((".jsonl", ".ndjson")) or (text.lstrip()[0] == "{" and not source.endswith(".txt"))
    prompts, problems = _json_lines(text, source) if as_json else (_blocks(text), [])
    if not prompts:
        detail = "".join(f"\n  {p}" for p in problems[:5])
        raise PromptError(f"{source} holds no usable prompt.{detail}")
    return Prompts(prompts=_distinct(prompts), problems=tuple(problems), source=source)


def prepare(
    found: Prompts, tokenizer: Tokenizer | None, vocab: int, context: int, *, max_tokens: int, seed: int = 0
) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    """Tokenise prompts for a model: (tasks, problems). A prompt's own `max_tokens` wins; both are cut to the context.

    Without a tokenizer (table models) a text is read as ids. Raises PromptError where no prompt is left, ModelError
    where the tokenizer makes ids that the model does not have.
    """
    tasks: list[Task] = []
    problems = list(found.problems)
    for number, prompt in enumerate(found.prompts):
        try:
            ids = encode(prompt, tokenizer)
            fit(ids, vocab, context, typed=prompt.ids is not None or tokenizer is None)
        except PromptError as error:
            problems.append(f"line {prompt.line} ({prompt.name}): {error}")
            continue
        limit = min(prompt.max_tokens or max_tokens, context - len(ids))
        text = (
            prompt.text if prompt.text is not None else tokenizer.decode(ids) if tokenizer else " ".join(map(str, ids))
        )
        request = Request(number=number, prompt=ids, max_tokens=limit, seed=seed)
        tasks.append(Task(name=prompt.name, category=prompt.category, text=text, request=request))
    if not tasks:
        detail = "".join(f"\n  {p}" for p in problems[:5])
        raise PromptError(f"no prompt can be run.{detail}")
    return tuple(tasks), tuple(problems)


def encode(prompt: Prompt, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The ids of one prompt, with the model's begin token where it has one. Raises PromptError for an empty prompt."""
    if prompt.ids is not None:
        ids = prompt.ids
    elif tokenizer is None:
        if prompt.text is None:
            raise PromptError("a table model has no chat template. Write a prompt of ids such as '3 1 4'.")
        ids = typed_ids(prompt.text)
    elif prompt.messages is not None:
        ids = tuple(tokenizer.chat(prompt.messages))
    else:
        ids = tuple(tokenizer.encode(prompt.text or ""))
        if ids and tokenizer.bos is not None:
            ids = (tokenizer.bos, *ids)
    if not ids:
        raise PromptError("the prompt is empty. Write at least one token.")
    return ids


def fit(ids: Sequence[int], vocab: int, context: int, *, typed: bool) -> None:
    """Raise PromptError where `ids` do not fit the model; ModelError where not the user but a tokenizer made them."""
    worst = max(ids) if max(ids) >= vocab else min(ids)
    if not 0 <= worst < vocab and typed:
        raise PromptError(f"id {worst} is outside the vocabulary of {vocab}")
    if not 0 <= worst < vocab:
        raise ModelError(
            f"the tokenizer makes id {worst} and the model has {vocab} ids: they belong to different models. "
            "Put the tokenizer.json of this model into its folder."
        )
    if len(ids) >= context:
        raise PromptError(f"the prompt has {len(ids)} tokens, and the context holds {context}. Shorten it.")


def typed_ids(text: str) -> tuple[int, ...]:
    """Token ids as typed, `3 1 4` or `3,1,4`: how prompts of table models are written. Raises PromptError."""
    try:
        return tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        raise PromptError(
            f"a table model has no tokenizer: write its prompt as ids such as '3 1 4', got {text[:40]!r}"
        ) from None


def _json_lines(text: str, source: str) -> tuple[list[Prompt], list[str]]:
    prompts: list[Prompt] = []
    problems: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            prompts.append(_from_json(line, number))
        except PromptError as error:
            problems.append(f"{source} line {number}: {error}")
    return prompts, problems


def _from_json(line: str, number: int) -> Prompt:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"not JSON ({error})") from None
    if not isinstance(data, dict):
        raise PromptError('not a JSON object; write {"prompt": "..."}')
    entry = cast(dict[str, object], data)
    for key in entry:
        if key not in KEYS:
            raise PromptError(f"unknown key '{key}'. {nearest(key, KEYS)}")
    if ("prompt" in entry) == ("messages" in entry):
        raise PromptError("needs exactly one of prompt and messages")
    limit = entry.get("max_tokens")
    if limit is not None and (type(limit) is not int or not 1 <= limit <= MOST_TOKENS):
        raise PromptError(f"max_tokens must be a whole number from 1 to {MOST_TOKENS}, got {limit!r}")
    for key in ("name", "category"):
        if not isinstance(entry.get(key, ""), str):
            raise PromptError(f"{key} must be text, got {entry[key]!r}")
    base = Prompt(
        name=str(entry.get("name") or f"prompt {number}"),
        line=number,
        category=str(entry.get("category", "")),
        max_tokens=limit if isinstance(limit, int) else None,
    )
    if "messages" in entry:
        return replace(base, messages=_messages(entry["messages"]))
    prompt = entry["prompt"]
    if isinstance(prompt, str):
        if not prompt:
            raise PromptError("the prompt is empty")
        return replace(base, text=prompt)
    if isinstance(prompt, list) and prompt and all(type(i) is int for i in cast(list[object], prompt)):
        return replace(base, ids=tuple(cast(list[int], prompt)))
    raise PromptError(f"prompt must be text or a list of token ids, got {json.dumps(prompt)[:40]}")


def _messages(value: object) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise PromptError('messages must be a list of {"role": ..., "content": ...}')
    out: list[dict[str, str]] = []
    for item in cast(list[object], value):
        message = cast(dict[str, object], item) if isinstance(item, dict) else {}
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise PromptError("every message needs a role and a content, both text")
        out.append({"role": role, "content": content})
    return tuple(out)


def _blocks(text: str) -> list[Prompt]:
    prompts: list[Prompt] = []
    lines: list[str] = []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.strip():
            lines.append(line)
        elif lines:
            prompts.append(Prompt(name=f"prompt {len(prompts) + 1}", line=number - len(lines), text="\n".join(lines)))
            lines = []
    return prompts


def _distinct(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """Equal names get their line number: results are stored by name."""
    names = [p.name for p in prompts]
    return tuple(p if names.count(p.name) == 1 else replace(p, name=f"{p.name} (line {p.line})") for p in prompts)
