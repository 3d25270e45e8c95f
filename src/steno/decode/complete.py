"""Suggestions at a cursor: several ways on from a text, which may stop within a word.

The end of the text is healed first: tokens that may be the beginning of a longer one are taken back, and what comes has
to begin with their bytes (`decode.constrain.prefix`). Any search looks for the ways on, each text ending after so many
lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, cast

from steno.core import Knob, Model, Plan, make_knob
from steno.core.errors import KnobError, PromptError, nearest
from steno.core.index import methods

from .base import Completion, ConstraintKnob, Request
from .loop import generate

if TYPE_CHECKING:
    from steno.tokens import Tokenizer, Words

SEARCHES = "decode.search."
WAYS = ("groups", "beams", "k")
"""What searches call the number of texts they look for."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """What may stand at the cursor; the larger the score the better, among those of one call."""

    text: str
    score: float
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Suggestions:
    """Different suggestions, best first.

    healed    the end of the text that was written anew, in one of several ways
    passes    forwards after the prompt
    prompt_s  from the call to the first forward after the prompt: encoding, healing and prefill
    """

    found: tuple[Suggestion, ...]
    healed: str
    prompt_tokens: int
    passes: int
    prompt_s: float
    total_s: float


def provider(name: str, count: int) -> Knob:
    """The search called `name`, with or without its room, set to look for `count` texts."""
    full = name if name.startswith(SEARCHES) else SEARCHES + name
    known = methods()
    if full not in known:
        searches = [n.removeprefix(SEARCHES) for n in known if n.startswith(SEARCHES)]
        raise KnobError(f"there is no provider '{name}'. {nearest(name, searches)}")
    held = known[full]["fields"]
    ways = next((field for field in WAYS if field in held), None)
    settings = {"width": 1} if "groups" in held and "width" in held else {}
    return make_knob(full, {**settings, **({ways: count} if ways else {})})


def complete(
    model: Model,
    tokenizer: "Tokenizer",
    before: str,
    *,
    count: int = 3,
    lines: int = 1,
    max_tokens: int = 32,
    plan: Plan = Plan(),
) -> Suggestions:
    """Up to `count` different suggestions of up to `lines` lines for what follows `before`.

    The plan's search provides them; without one, diverse beam search with `count` groups. Of a text that does not fit
    the model's context, the end is read. Raises PromptError for an empty text where the model has no token to begin
    with, and what `generate` raises.
    """
    from steno.tokens import Words

    start = perf_counter()
    search = plan.one("decode.search") or provider("diverse_beam", count)
    plan = plan.with_knobs(search)
    words = Words.of(tokenizer, model.vocab, model.eos)
    kept, rest = heal(words, tokenizer.encode(before))
    first = [token for token in (tokenizer.bos, *words.ends) if token is not None][:1]
    prompt = (kept or first)[-max(model.context - max_tokens - len(rest), 1) :]
    if not prompt:
        raise PromptError(
            "there is no text before the cursor, and the model has no token to begin with. Move the cursor."
        )
    asked = Request(number=0, prompt=tuple(prompt), max_tokens=max_tokens + len(rest), constrain=_begin(rest, lines))
    (done,) = generate(model, [asked], plan, words=words)
    end = perf_counter()
    return Suggestions(
        found=tuple(_ranked(words, done, len(rest), lines)[:count]),
        healed=rest.decode("utf-8"),
        prompt_tokens=len(asked.prompt),
        passes=done.stats.passes,
        prompt_s=end - start - done.stats.decode_s,
        total_s=end - start,
    )


def heal(words: "Words", ids: Sequence[int]) -> tuple[list[int], bytes]:
    """(the ids that stay, the bytes of those taken back): as many as together may begin a longer word.

    >>> from steno.tokens import Words
    >>> heal(Words(table=(b"x", b"re", b"tu", b"return"), ends=(), encode=list), [0, 1, 2])
    ([0], b'retu')
    """
    taken, rest = 0, b""
    for count in range(1, len(ids) + 1):
        end = b"".join(words.table[token] for token in ids[len(ids) - count :])
        if len(end) >= words.widest:
            break
        if words.begins(end) and _whole(end):
            taken, rest = count, end
    return list(ids[: len(ids) - taken]), rest


def _begin(rest: bytes, lines: int) -> ConstraintKnob:
    return cast(ConstraintKnob, make_knob("decode.constrain.prefix", {"text": rest.decode("utf-8"), "lines": lines}))


def _ranked(words: "Words", done: Completion, healed: int, lines: int) -> list[Suggestion]:
    """The texts past what was healed, cut to `lines`; of equal ones the best."""
    found: dict[str, Suggestion] = {}
    for way in done.found:
        # The end of a character may be missing where the length ran out.
        text = _cut(b"".join([words.table[token] for token in way.tokens])[healed:].decode("utf-8", "ignore"), lines)
        if text and text not in found:
            found[text] = Suggestion(text=text, score=way.score, tokens=way.tokens)
    return list(found.values())


def _cut(text: str, lines: int) -> str:
    """The first `lines` lines that are not blank, with the blank ones before them.

    >>> _cut("\\n  a\\nb\\nc", 2)
    '\\n  a\\nb'
    """
    parts = text.split("\n")
    full = [number for number, part in enumerate(parts) if part.strip()]
    return "\n".join(parts[: full[lines - 1] + 1]) if len(full) >= lines else text.rstrip("\n") if full else ""


def _whole(data: bytes) -> bool:
    """Whether characters are whole: a constraint is text."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
