"""Rows of text in the model's own words, and its hidden states at every place of them, through `Session`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steno.core import ROOT, Model, Nodes, Want
from steno.core.errors import DataError, ModelError
from steno.decode import Request, generate
from steno.tokens import Tokenizer
from steno.train.base import Document
from steno.train.heads.recipe import Text

BATCH = 8
Ints = npt.NDArray[np.int32]
Halves = npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Ids [B, T] and hidden states [B, T, M] by layer, in float16."""

    ids: Ints
    hidden: Mapping[int, Halves]


def openings(documents: Iterable[Document], tokenizer: Tokenizer, rows: int, prompt: int, seed: int) -> Ints:
    """[B, prompt] crops of documents, at random places; a document is as likely as it is long.

    Raises DataError where no document has as many tokens.
    """
    texts = [ids for d in documents if len(ids := tokenizer.encode(d.text)) >= prompt]
    if not texts:
        raise DataError(f"no document has {prompt} tokens. Lower text.prompt, or add text to the sources.")
    rng = np.random.default_rng(seed)
    sizes = np.array([len(ids) for ids in texts], np.float64)
    out = np.empty((rows, prompt), np.int32)
    for row, which in enumerate(rng.choice(len(texts), rows, p=sizes / sizes.sum())):
        at = int(rng.integers(0, len(texts[which]) - prompt + 1))
        out[row] = texts[which][at : at + prompt]
    return out


def continued(model: Model, prompts: Ints, tokens: int) -> Ints:
    """[B, tokens]: each prompt and what greedy decoding makes of it, past end tokens."""
    if tokens > model.context:
        raise ModelError(f"{model.name} holds {model.context} tokens; lower text.tokens from {tokens}.")
    asked = [
        Request(number=i, prompt=tuple(p.tolist()), max_tokens=tokens - len(p), ignore_eos=True)
        for i, p in enumerate(prompts)
    ]
    done = generate(model, asked, batch=BATCH)
    return np.array([(*c.request.prompt, *c.tokens) for c in done], np.int32)


def states(model: Model, ids: Ints, layers: tuple[int, ...]) -> dict[int, Halves]:
    """Hidden states [B, T, M] by layer after every token of `ids` [B, T]."""
    count, length = ids.shape
    parts: dict[int, list[Halves]] = {layer: [] for layer in layers}
    for start in range(0, count, BATCH):
        rows = ids[start : start + BATCH]
        session = model.open(len(rows), length)
        found: dict[int, list[Halves]] = {layer: [] for layer in layers}
        for at in range(0, length, session.caps.max_width):
            tokens = np.ascontiguousarray(rows[:, at : at + session.caps.max_width])
            width = tokens.shape[1]
            parents = np.tile(np.arange(ROOT, width - 1, dtype=np.int32), (len(rows), 1))
            step = session.forward(Nodes(tokens=tokens, parents=parents), Want(logits=False, hidden=layers))
            for layer in layers:
                found[layer].append(step.hidden(layer).astype(np.float16))
            session.commit([range(width)] * len(rows))
        for layer in layers:
            parts[layer].append(np.concatenate(found[layer], 1))
    return {layer: np.concatenate(found) for layer, found in parts.items()}


def collect(
    model: Model,
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    text: Text,
    *,
    rows: int,
    seed: int,
    layers: tuple[int, ...],
) -> Rows:
    """`rows` rows from the documents. The same arguments give the same rows."""
    prompts = openings(documents, tokenizer, rows, text.prompt, seed)
    ids = continued(model, prompts, text.tokens)
    return Rows(ids=ids, hidden=states(model, ids, layers))
