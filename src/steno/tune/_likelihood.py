"""What a model thinks of a text."""

from collections.abc import Sequence

import numpy as np

from steno.core import ROOT, Model, Nodes


def log_prob(model: Model, prompt: Sequence[int], text: Sequence[int]) -> float:
    """Natural logarithm of the model's probability of `text` after `prompt`."""
    return sum(log_probs(model, prompt, text))


def log_probs(model: Model, prompt: Sequence[int], text: Sequence[int]) -> list[float]:
    """`log_prob` token by token, run in chains as wide as the session takes."""
    ids = [*prompt, *text]
    session = model.open(1, len(ids))
    session.prefill([list(prompt[:-1])])
    out: list[float] = []
    for start in range(len(prompt) - 1, len(ids) - 1, session.caps.max_width):
        chain = ids[start : min(start + session.caps.max_width, len(ids) - 1)]
        size = len(chain)
        nodes = Nodes(tokens=np.array([chain], np.int32), parents=np.arange(ROOT, size - 1, dtype=np.int32)[None])
        logits = session.forward(nodes).logits[0].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        laws = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        out += [float(log) for log in laws[np.arange(size), ids[start + 1 : start + 1 + size]]]
        session.commit([list(range(size))])
    return out
