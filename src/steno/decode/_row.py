"""One request on its way: its ids, where it ends, and what is counted about it."""

from collections.abc import Sequence

from steno.core.errors import PromptError

from ._text import Decoder, Tail
from .base import Completion, Constraint, Hypothesis, Piece, Request, Stats

MOST_REST = 4
"""Most steps without a draft after drafts that did not pay: cheap where they never do, soon back where they do."""


class Row:
    """Ids and ends of one request.

    ids    prompt and output; the last one is the pending token, whose KV is not made yet
    ends   tokens that end the text
    place  where a text that is constrained stands, the pending token included
    """

    def __init__(
        self,
        ticket: int,
        request: Request,
        *,
        capacity: int,
        eos: frozenset[int],
        decode: Decoder | None,
        place: Constraint | None = None,
    ) -> None:
        self.ticket = ticket
        self.request = request
        self.ids = list(request.prompt)
        self.stats = Stats()
        self.pieces: list[Piece] = []
        self.finish = ""
        self.place = place
        self.ends = frozenset[int]() if request.ignore_eos else eos
        # The last token of a full row needs no KV: a row of `capacity` tokens yields one more.
        asked = len(self.ids) + request.max_tokens
        self.end = min(asked, capacity + 1)
        self._reason = "length" if asked <= capacity + 1 else "context"
        self._tail = None if decode is None else Tail(decode, request.stop)
        self._declined = self._rest = 0
        if len(self.ids) >= self.end:
            self.finish = self._reason

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        return self.end - len(self.ids)

    def drafts(self) -> bool:
        """Whether to ask for a draft: after drafts that were not worth their forward, only now and then."""
        if self._rest:
            self._rest -= 1
            return False
        return True

    def drafted(self, worth: bool) -> None:
        """A draft was proposed, and was worth making or not."""
        self._declined = 0 if worth else self._declined + 1
        self._rest = min(self._declined // 2, MOST_REST)

    def take(self, new: list[int], drafted: int, source: str) -> Piece:
        """Append what the text keeps of `new`, of which the first `drafted` come from a draft; sets `finish`."""
        kept = self._cut(new)
        tokens = new if kept == len(new) else new[:kept]
        self.ids += tokens
        if self.place is not None:
            for token in tokens:
                self.place = self.place.advance(token)
        text = ""
        if self._tail is not None:
            if self.finish:
                self._tail.close()
            text = self._tail.take()
        piece = Piece(
            number=self.request.number,
            tokens=tuple(tokens),
            drafted=min(drafted, kept),
            source=source if drafted else "",
            text=text,
        )
        self.pieces.append(piece)
        return piece

    def count(self, passes: int, drafted: int, accepted: int) -> None:
        """Count one step."""
        stats = self.stats
        stats.passes += passes
        stats.drafted += drafted
        stats.accepted += accepted
        stats.histogram[accepted] = stats.histogram.get(accepted, 0) + 1

    def complete(self, found: tuple[Hypothesis, ...] = ()) -> Completion:
        """The finished request, with all texts of a search."""
        tokens = tuple(self.ids[len(self.request.prompt) :])
        self.stats.tokens = len(tokens)
        return Completion(
            request=self.request,
            tokens=tokens,
            text="".join([piece.text for piece in self.pieces]),
            finish=self.finish,
            pieces=tuple(self.pieces),
            stats=self.stats,
            found=found,
        )

    def _cut(self, new: Sequence[int]) -> int:
        """How many of `new` the text keeps. Token by token, so that the cut does not depend on how they came."""
        left = self.end - len(self.ids)
        eos, tail = self.ends, self._tail
        for count, token in enumerate(new, 1):
            if token in eos:
                self.finish = "eos"
                return count
            if tail is not None and tail.push(token):
                self.finish = "stop"
                return count
            if count == left:
                self.finish = self._reason
                return count
        return len(new)


def check(request: Request, capacity: int, vocab: int, decode: Decoder | None) -> None:
    """Raises PromptError for a request that cannot be served."""
    who = f"request {request.number}"
    prompt = request.prompt
    if not prompt:
        raise PromptError(f"{who}: the prompt is empty. Give it at least one token, such as the model's BOS.")
    if len(prompt) > capacity:
        raise PromptError(
            f"{who}: the prompt has {len(prompt)} tokens and the context holds {capacity}. Shorten the prompt."
        )
    if min(prompt) < 0 or max(prompt) >= vocab:
        wrong = next(token for token in prompt if not 0 <= token < vocab)
        raise PromptError(
            f"{who}: token id {wrong} is outside the model's vocabulary of {vocab}. Use the model's own tokenizer."
        )
    if request.max_tokens < 0:
        raise PromptError(f"{who}: max_tokens must be 0 or more, got {request.max_tokens}.")
    if request.stop and decode is None:
        raise PromptError(f"{who}: stop strings need text, and no decoder was given. Pass text=tokenizer.decode.")
    if "" in request.stop:
        raise PromptError(f"{who}: an empty stop string stops everywhere. Remove it.")
