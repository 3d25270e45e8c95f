"""The llama2.c converter, against a plain numpy forward pass in llama2.c's own convention."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TOOLS = Path(__file__).resolve().parents[1] / "tools"
sys.path.insert(0, str(TOOLS))

import convert_llama2c  # noqa: E402

DIM, INNER, LAYERS, HEADS, KV, VOCAB, CONTEXT = 16, 24, 2, 4, 2, 272, 32
WORDS = [" ", "a", "b", "ab", " ab", "abab", " a", "ba", "aba", "bab", " abab", "c", "ca"]


def tokens_of() -> list[tuple[bytes, float]]:
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n"] + [f"<0x{i:02X}>" for i in range(256)] + WORDS
    return [(p.encode(), -float(max(0, i - 259))) for i, p in enumerate(pieces)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama2c")
    rng = np.random.default_rng(0)
    size = DIM // HEADS
    shapes = {
        "embed": (VOCAB, DIM), "na": (LAYERS, DIM), "q": (LAYERS, DIM, DIM), "k": (LAYERS, KV * size, DIM),
        "v": (LAYERS, KV * size, DIM), "o": (LAYERS, DIM, DIM), "nf": (LAYERS, DIM), "w1": (LAYERS, INNER, DIM),
        "w2": (LAYERS, DIM, INNER), "w3": (LAYERS, INNER, DIM), "n": (DIM,), "rope": (CONTEXT, size),
    }  # fmt: skip
    weights = {k: (rng.normal(size=s) * 0.3).astype("<f4") for k, s in shapes.items()}
    head = struct.pack("<7i", DIM, INNER, LAYERS, HEADS, KV, VOCAB, CONTEXT)
    (folder / "m.bin").write_bytes(head + b"".join(w.tobytes() for w in weights.values()))
    body = b"".join(struct.pack("<fi", s, len(raw)) + raw for raw, s in tokens_of())
    (folder / "t.bin").write_bytes(struct.pack("<i", 8) + body)
    return folder, weights


def naive_logits(w: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """llama2.c's forward: neighbouring pairs are rotated, one token after the other."""
    size = DIM // HEADS
    norm = lambda x, g: x / np.sqrt((x * x).mean() + 1e-5) * g  # noqa: E731
    keys = [[] for _ in range(LAYERS)]
    values = [[] for _ in range(LAYERS)]

    def rotate(x: np.ndarray, position: int) -> np.ndarray:
        out = x.copy()
        for i in range(0, len(x), 2):
            angle = position / 10000.0 ** ((i % size) / size)
            c, s = np.cos(angle), np.sin(angle)
            out[i], out[i + 1] = x[i] * c - x[i + 1] * s, x[i] * s + x[i + 1] * c
        return out

    for position, token in enumerate(ids):
        x = w["embed"][token].astype(np.float64)
        for layer in range(LAYERS):
            h = norm(x, w["na"][layer])
            q = rotate(w["q"][layer] @ h, position).reshape(HEADS, size)
            keys[layer].append(rotate(w["k"][layer] @ h, position).reshape(KV, size))
            values[layer].append((w["v"][layer] @ h).reshape(KV, size))
            heads = []
            for i in range(HEADS):
                k = np.stack([t[i // (HEADS // KV)] for t in keys[layer]])
                v = np.stack([t[i // (HEADS // KV)] for t in values[layer]])
                score = k @ q[i] / np.sqrt(size)
                p = np.exp(score - score.max())
                heads.append(p / p.sum() @ v)
            x = x + w["o"][layer] @ np.concatenate(heads)
            h = norm(x, w["nf"][layer])
            gate = w["w1"][layer] @ h
            x = x + w["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (w["w3"][layer] @ h))
        out = w["embed"] @ norm(x, w["n"])
    return out


def test_logits_equal_the_source_conventions(files, tmp_path, monkeypatch, capsys):
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder, weights = files
    out = tmp_path / "hf"
    monkeypatch.setattr(sys, "argv", ["convert", str(folder / "m.bin"), str(folder / "t.bin"), str(out)])
    assert convert_llama2c.main() == 0
    model = AutoModelForCausalLM.from_pretrained(out)
    ids = [1, 260, 259, 17, 261, 262, 5]
    with torch.inference_mode():
        mine = model(torch.tensor([ids])).logits[0, -1].double().numpy()
    assert np.abs(mine - naive_logits(weights, ids)).max() < 1e-4
    assert convert_llama2c.main() == 2
    assert "exists already" in capsys.readouterr().err


def naive_encode(text: str, tokens: list[tuple[bytes, float]]) -> list[int]:
    """llama2.c's own encoder: bytes or characters first, then the best-scored neighbouring pair, again and again."""
    table = {raw: (i, score) for i, (raw, score) in enumerate(tokens)}
    ids = []
    for letter in " " + text:
        raw = letter.encode()
        ids += [table[raw][0]] if raw in table else [b + 3 for b in raw]
    while True:
        best = (-1e10, -1, -1)
        for i in range(len(ids) - 1):
            pair = tokens[ids[i]][0] + tokens[ids[i + 1]][0]
            if pair in table and table[pair][1] > best[0]:
                best = (table[pair][1], i, table[pair][0])
        if best[1] < 0:
            return ids
        ids[best[1] : best[1] + 2] = [best[2]]


@pytest.mark.parametrize("text", ["abab", "ab abab ca", "caba", "naïve ab\n日", "", "  a  b"])
def test_tokens_equal_the_source_encoder(text):
    tokenizer = convert_llama2c.make_tokenizer(tokens_of())
    mine = tokenizer.encode(text, add_special_tokens=False).ids
    if text:
        assert mine == naive_encode(text, tokens_of())
    assert tokenizer.decode(mine) == text


def test_a_truncated_checkpoint_is_refused(files, tmp_path):
    folder, _ = files
    short = tmp_path / "short.bin"
    short.write_bytes((folder / "m.bin").read_bytes()[:-400])
    with pytest.raises(ValueError, match="truncated"):
        convert_llama2c.read_checkpoint(short)
