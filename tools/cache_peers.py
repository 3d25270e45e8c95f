"""Cache forms beside their peers in one run: transformers' QuantizedCache (quanto, hqq) and kvpress, on nib in float32.

    pip install 'steno[bench]'
    python tools/cache_peers.py        writes docs/bench/cache_peers.json; tools/pareto.py makes a table of it

Every arm reads all but the last 64 tokens of a module that nib has never seen, then the rest one by one; the logits of
those are compared with the same model's under a plain cache. Bytes are those of the tensors that the cache holds at the
end, packed as they are. Times are of the 64 single steps, in one process, one arm after another, and include each
library's own overhead. What does not run is listed with the reason.
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any, NamedTuple, cast

import evidence
import numpy as np
import torch

from steno.cache.affine import Affine
from steno.cache.h2o import H2O
from steno.cache.snap import Snap
from steno.cache.window import Window
from steno.core import CacheSpec, Model, Nodes
from steno.measure.machine import here
from steno.models import ModelSpec, load
from steno.tokens import load as load_tokenizer

OUT = Path(__file__).resolve().parents[1] / "docs" / "bench" / "cache_peers.json"
TAIL, TEXTS = 64, 4
FORMS: dict[str, CacheSpec | None] = {
    "steno, dense": None,
    "steno, affine 4 bits": Affine(residual=32, block=32),
    "steno, affine 2 bits": Affine(key_bits=2, value_bits=2, residual=32, block=32),
    "steno, snap": Snap(budget=384, residual=64),
    "steno, h2o": H2O(heavy=384, residual=64),
    "steno, window": Window(sinks=4, window=448),
}


class Read(NamedTuple):
    """Log-probabilities [TAIL, V], bytes held, seconds of the tail."""

    laws: np.ndarray
    held: int
    seconds: float


def main() -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = evidence.floats(Path(scratch) / "nib")
        tokenizer = load_tokenizer(folder)
        texts = [whole(tokenizer.encode(text)) for _, text in evidence.modules()[:TEXTS]]
        done = {name: run(ours(folder, form), texts) for name, form in FORMS.items()}
        # Importing kvpress rewrites every attention function of transformers, and steno's stops working: after ours.
        done |= {name: run(arm, texts) for name, arm in theirs(folder).items()}
    truth = [read.laws for read in cast(list[Read], done["transformers, DynamicCache"])]
    rows: list[dict[str, object]] = []
    for name, found in done.items():
        rows.append({"arm": name, **({"error": found} if isinstance(found, str) else compared(truth, found, texts))})
    names = ("transformers", "optimum-quanto", "hqq", "kvpress")
    versions = {name: metadata.version(name) for name in names}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    machine = here(threads=2)
    record = {
        "on": f"nib in float32, {len(texts)} modules of about a thousand tokens, {told}, {machine.cpu}",
        "rows": rows,
    }
    OUT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))
    return 0


def whole(ids: Sequence[int]) -> tuple[int, ...]:
    """So many tokens that groups of 64 fill the part that is read at once: hqq's packing fails on an odd number."""
    return tuple(ids[: (len(ids) - TAIL) // 64 * 64 + TAIL])


def run(arm: Callable[[Sequence[int]], Read], texts: Sequence[Sequence[int]]) -> list[Read] | str:
    """What an arm gives for each text, or why it does not run, which is a result too."""
    try:
        return [arm(text) for text in texts]
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"


def compared(truth: Sequence[np.ndarray], done: Sequence[Read], texts: Sequence[Sequence[int]]) -> dict[str, object]:
    """One row's figures."""
    kl = [(np.exp(a) * (a - b.laws)).sum(-1) for a, b in zip(truth, done, strict=True)]
    same = [(a.argmax(-1) == b.laws.argmax(-1)).mean() for a, b in zip(truth, done, strict=True)]
    # nib: six layers, one key head of 64 channels.
    bits = [8 * read.held / (2 * 6 * 64 * len(text)) for read, text in zip(done, texts, strict=True)]
    return {
        "bits": round(fmean(bits), 2),
        "kl": float(f"{np.concatenate(kl).mean():.3g}"),
        "same": round(100 * fmean(same), 2),
        "ms_per_token": round(1000 * median(read.seconds for read in done) / TAIL, 2),
    }


def ours(folder: Path, form: CacheSpec | None) -> Callable[[Sequence[int]], Read]:
    model: Model = load(ModelSpec(source=str(folder), backend="hf", threads=2))

    def read(text: Sequence[int]) -> Read:
        session = model.open(1, len(text) + 1, form)
        session.prefill([text[:-TAIL]])
        logits: list[np.ndarray] = []
        start = perf_counter()
        for token in text[-TAIL:]:
            nodes = Nodes(tokens=np.array([[token]], np.int32), parents=np.array([[-1]], np.int32))
            logits.append(np.array(session.forward(nodes).logits[0, 0]))
            session.commit([[0]])
        seconds = perf_counter() - start
        return Read(laws(np.stack(logits)), sum(session.cache_bytes().values()), seconds)

    return read


def theirs(folder: Path) -> dict[str, Callable[[Sequence[int]], Read]]:
    """The peers' arms."""
    import kvpress
    from transformers import AutoModelForCausalLM, DynamicCache, QuantizedCache

    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    eager = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    @torch.inference_mode()
    def read(text: Sequence[int], make: Callable[[], Any], press: Any = None, net: Any = net) -> Read:
        cache = make()
        ids = torch.tensor([list(text)])
        with press(net) if press is not None else nullcontext():
            # kvpress asks for positions that this transformers passes on only where they are given.
            extra = {} if press is None else {"cache_position": torch.arange(len(text) - TAIL)}
            net(input_ids=ids[:, :-TAIL], past_key_values=cache, **extra)
        logits: list[np.ndarray] = []
        start = perf_counter()
        for at in range(len(text) - TAIL, len(text)):
            where = torch.tensor([[at]])
            out = net(input_ids=ids[:, at : at + 1], past_key_values=cache, position_ids=where)
            logits.append(out.logits[0, 0].numpy())
        seconds = perf_counter() - start
        return Read(laws(np.stack(logits)), held(cache), seconds)

    def quantised(backend: str, bits: int, **other: int) -> Callable[[], Any]:
        return lambda: QuantizedCache(backend, net.config, nbits=bits, **other)

    plain = lambda: DynamicCache(config=net.config)  # noqa: E731
    caches: dict[str, tuple[Callable[[], Any], Any, Any]] = {
        "transformers, DynamicCache": (plain, None, net),
        "transformers, quanto 4 bits": (quantised("quanto", 4), None, net),
        "transformers, quanto 2 bits": (quantised("quanto", 2), None, net),
        "transformers, hqq 4 bits": (quantised("hqq", 4, axis_key=1, axis_value=1), None, net),
        "transformers, hqq 2 bits": (quantised("hqq", 2, axis_key=1, axis_value=1), None, net),
        "kvpress, SnapKVPress": (plain, kvpress.SnapKVPress(compression_ratio=0.5), net),
        "kvpress, StreamingLLMPress": (plain, kvpress.StreamingLLMPress(compression_ratio=0.5), net),
        "kvpress, KnormPress": (plain, kvpress.KnormPress(compression_ratio=0.5), net),
        "kvpress, ExpectedAttentionPress": (plain, kvpress.ExpectedAttentionPress(compression_ratio=0.5), net),
        "kvpress, ObservedAttentionPress": (plain, kvpress.ObservedAttentionPress(compression_ratio=0.5), eager),
    }

    def arm(make: Callable[[], Any], press: Any, model: Any) -> Callable[[Sequence[int]], Read]:
        return lambda text: read(text, make, press, model)

    return {name: arm(*parts) for name, parts in caches.items()}


def held(cache: Any) -> int:
    """Bytes of all tensors that a cache holds, each storage once; quantised tensors are taken apart."""
    found: dict[int, int] = {}
    for tensor in leaves([layer.__dict__ for layer in cache.layers]):
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def leaves(item: object) -> Iterator[torch.Tensor]:
    if isinstance(item, torch.Tensor):
        parts = getattr(item, "__tensor_flatten__", None)
        if parts is None or type(item) in (torch.Tensor, torch.nn.Parameter):
            yield item
        else:
            for name in parts()[0]:
                yield from leaves(getattr(item, name))
    elif isinstance(item, dict):
        for value in item.values():
            yield from leaves(value)
    elif isinstance(item, list | tuple):
        for value in item:
            yield from leaves(value)


def laws(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


if __name__ == "__main__":
    sys.exit(main())
