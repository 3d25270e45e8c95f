"""Grammars by llguidance: places in a text as parsers that are copied before they go on.

llguidance walks a trie of the vocabulary's bytes with an Earley parser over derivative-based lexers, and gives a bit
per token. A copy of its parser shares what it can and takes a microsecond, so every place holds its own, which makes
trees and beams free. By itself it writes what is certain with the tokenizer's own tokens and masks all other ways to
write it; that is off here (`no_forcing`): masks leave the model all that the text allows, and what is certain is
drafted. It has no exceptions: a parser that fails says from then on that only an end may come, and must be asked.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import llguidance
import numpy as np

from steno.core.errors import CapsError, KnobError

from ..base import Bools, Constraint
from ._over import Over

if TYPE_CHECKING:
    from steno.tokens import Words


class Guided:
    """Implements `Constraint`."""

    def __init__(self, who: str, parser: llguidance.LLMatcher, words: "Words") -> None:
        self._who = who
        self._parser = parser
        self._words = words

    def mask(self) -> Bools:
        bits = np.frombuffer(self._parser.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=len(self._words.table), bitorder="little").view(np.bool_)

    def allows(self, token: int) -> bool:
        if token in self._words.ends:
            return self._parser.is_accepting()
        known = 0 <= token < len(self._words.table) and self._words.table[token]
        return bool(known) and self._parser.validate_tokens([token]) == 1

    def advance(self, token: int) -> Constraint:
        if token in self._words.ends:
            return Over(self._words)
        parser = self._parser.deep_copy()
        parser.consume_token(token)
        found = Guided(self._who, parser, self._words)
        found._check()
        return found

    def forced(self) -> Sequence[int]:
        """What is forced in bytes, as the tokenizer writes it, with the end where nothing else may follow.

        Where the text goes on, the last token may be part of a longer one and is left to the model.
        """
        after = self._parser.deep_copy()
        written = bytes(after.compute_ff_bytes())
        tokens = list(self._words.encode(written))
        tokens = tokens[: after.try_consume_tokens(tokens)]
        if after.is_stopped() and not after.is_error():
            return [*tokens, self._words.ends[0]]
        return tokens[:-1]

    def _check(self) -> None:
        if not self._parser.is_error():
            return
        told = self._parser.get_error()
        if told.startswith("NoExtension"):
            raise CapsError(
                f"{self._who}: no token of this vocabulary writes what has to come next. Choose a model whose "
                "tokenizer has every byte, such as nib."
            )
        raise CapsError(f"{self._who}: the parser gave up: {_line(told)}. Ask for less at once.")


LOOSE = '%llguidance {"no_forcing": true}\n'
"""Heads a grammar: nothing is masked that the text itself allows."""


def guided(who: str, grammar: str, words: "Words") -> Guided:
    """The start of a text in a grammar that `checked` has seen."""
    parser = llguidance.LLMatcher(_tokenizer(words), grammar, log_level=0)
    start = Guided(who, parser, words)
    start._check()
    return start


def checked(who: str, field: str, make: Callable[[], str]) -> str:
    """A grammar that llguidance takes. Raises KnobError, with its reason, for one it refuses or would hold in part."""
    try:
        grammar = make()
    except ValueError as error:
        told = _line(str(error))
        raise KnobError(f"{who}: {field} must be something llguidance can read; it says: {told}") from None
    failed, words = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    if failed or words:
        raise KnobError(
            f"{who}: {field} must be something llguidance holds in full; it says: {_line('; '.join(words))}"
        )
    return grammar


class _Vocabulary:
    """What llguidance asks of a tokenizer. Special tokens write nothing, so that no grammar can ask for them."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, words: "Words") -> None:
        self.tokens = words.table
        # Without an end token nothing that closes is ever opened (`ConstraintKnob.closes`); llguidance wants one.
        self.eos_token_id = words.ends[0] if words.ends else 0
        self.special_token_ids = list(words.ends)
        self._encode = words.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return list(self._encode(text.encode("utf-8") if isinstance(text, str) else text))


def _tokenizer(words: "Words") -> llguidance.LLTokenizer:
    found = _tokenizers.get(words)
    if found is None:
        ends = list(words.ends) or None
        found = _tokenizers[words] = llguidance.LLTokenizer(_Vocabulary(words), eos_token=ends)  # type: ignore[arg-type]
    return found


_tokenizers: "WeakKeyDictionary[Words, llguidance.LLTokenizer]" = WeakKeyDictionary()
"""Tries of vocabularies: a second for the largest, so each is built once."""


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
