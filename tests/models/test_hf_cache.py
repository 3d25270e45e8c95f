"""Cache forms on the hf backend: tiers behind the open buffer, with a dense form of the tests' own."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from contract import CHECKS, Subject, chains
from test_hf import full

from steno.core import Keeps
from steno.core.errors import CapsError, PromptError

CAPACITY = 64
FOLLOWS = ["llama", "mistral", "gpt2"]
FOLLOWS += [pytest.param(f, marks=pytest.mark.slow) for f in ("qwen3", "mixtral", "opt", "gemma3", "llama4")]


class DenseTier:
    """Sealed tokens as they came, one dense pair per row and layer; a row's arithmetic is its own."""

    def __init__(self, spec, shape):
        self.spec, self.shape = spec, shape
        empty = torch.zeros(2, shape.key_heads, 0, shape.head_dim)
        self.held = [[empty] * shape.layers for _ in range(shape.batch)]
        self.log = []

    @property
    def sealed(self):
        return tuple(row[-1].shape[2] for row in self.held)

    def seal(self, row, layer, k, v):
        self.log.append((row, layer, k.shape[1]))
        self.held[row][layer] = torch.cat([self.held[row][layer], torch.stack([k, v]).float()], 2)

    def attend(self, layer, q, positions, scale):
        out, lse = torch.zeros(q.shape), torch.full(q.shape[:3], -torch.inf)
        group = q.shape[1] // self.shape.key_heads
        for b, row in enumerate(self.held):
            k, v = (x.repeat_interleave(group, 0) for x in row[layer])
            if k.shape[1]:
                scores = q[b].float() @ k.transpose(1, 2) * scale
                seen = self.spec.sees(positions[b][:, None], torch.arange(k.shape[1])[None])
                if seen is not None:
                    scores = scores.masked_fill(~seen, -torch.inf)
                lse[b] = scores.logsumexp(-1)
                out[b] = torch.exp(scores - lse[b].clamp(min=-1e30)[..., None]) @ v
        return out, lse

    def materialise(self, layer):
        most = max(self.sealed)
        k, v = torch.zeros(2, self.shape.batch, self.shape.key_heads, most, self.shape.head_dim)
        where = torch.full((self.shape.batch, most), -1)
        for b, row in enumerate(self.held):
            count = row[layer].shape[2]
            k[b, :, :count], v[b, :, :count] = row[layer]
            where[b, :count] = torch.arange(count)
        return k, v, where

    def crop(self, row, length):
        if length == 0:
            self.held[row] = [layer[:, :, :0] for layer in self.held[row]]
        elif length < self.sealed[row]:
            raise CapsError("sealed")

    def fork(self, rows):
        twin = DenseTier(self.spec, self.shape)
        twin.held = [list(self.held[r]) for r in rows]
        return twin

    def storages(self):
        return {"payload": [pair for row in self.held for pair in row]}


@dataclass(frozen=True)
class Blocks:
    """Seals whole blocks and keeps `open_tokens` behind; `reach` limits what a query sees, with 2 sinks."""

    block: int = 8
    open_tokens: int = 3
    reach: int = 0

    def due(self, length):
        return max(length - self.open_tokens, 0) // self.block * self.block

    def sees(self, query, key):
        return (query - key < self.reach) | (key < 2) if self.reach else None

    def open(self, shape):
        return DenseTier(self, shape)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("family", FOLLOWS)
def test_contract(loaded, family, check):
    check(Subject(model=loaded(family), cache=Blocks()))


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("family", ["llama", "mistral", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_contract_pinned(loaded, family, check):
    """C7 is the point: compressed and speculative is compressed and plain, bit for bit."""
    subject = Subject(model=loaded(family, 8), cache=Blocks())
    assert subject.open().caps.chain_exact is Keeps.BITS
    check(subject)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_contract_of_a_form_that_forgets(loaded, check):
    check(Subject(model=loaded("llama", 8), cache=Blocks(reach=7)))


@pytest.mark.parametrize("family", FOLLOWS)
@pytest.mark.parametrize("width", [0, 8], ids=["free", "pinned"])
def test_a_dense_form_changes_nothing(loaded, family, width):
    model = loaded(family, width)
    subject = Subject(model=model)
    texts = [subject.ids(40, 1), subject.ids(3, 2), subject.ids(29, 3)]
    session = model.open(3, CAPACITY, Blocks())
    session.prefill([t[:-2] for t in texts])
    assert session._cache.tier.sealed == (32, 0, 24)
    logits = session.forward(chains(*(t[-2:] for t in texts))).logits
    for b, text in enumerate(texts):
        np.testing.assert_allclose(logits[b], full(model, text)[-2:], atol=1e-4, rtol=0)


def test_what_a_query_may_see_is_by_position(loaded):
    """A window of 7 with 2 sinks, against transformers given that mask: the same in open and in sealed tokens."""
    model = loaded("llama")
    text = Subject(model=model).ids(40, 1)
    session = model.open(1, CAPACITY, Blocks(reach=7))
    last = session.prefill([text], last=True)
    i, j = np.arange(40)[:, None], np.arange(40)[None]
    seen = torch.from_numpy((j <= i) & ((i - j < 7) | (j < 2)))
    mask = torch.zeros(1, 1, 40, 40).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        want = model.net(torch.tensor([text]), attention_mask=mask, use_cache=False).logits[0, -1].numpy()
    np.testing.assert_allclose(last[0], want, atol=1e-4, rtol=0)
    assert np.abs(last[0] - full(model, text)[-1]).max() > 0.1


@pytest.mark.parametrize("width", [0, 8], ids=["free", "pinned"])
def test_layers_without_a_registered_attention_materialise(loaded, width):
    """GPT-J keeps to no attention interface: sealed tokens come back as dense keys with a mask."""
    model = loaded("gptj", width)
    assert not model._registered
    for check in CHECKS:
        check(Subject(model=model, cache=Blocks()))


def test_sealing_is_schedule_invariant(loaded):
    """Prefill at once, token by token, and by drafts: the same blocks with the same bits."""
    model = loaded("llama", 8)
    text = Subject(model=model).ids(30)
    tiers = []
    for steps in ([30], [1] * 30, [7, 1, 9, 13]):
        session = model.open(1, CAPACITY, Blocks())
        at = 0
        for count in steps:
            session.prefill([text[at : at + count]])
            at += count
        tiers.append(session._cache.tier)
    session = model.open(1, CAPACITY, Blocks())
    rng = np.random.default_rng(3)
    while session.lengths[0] < 30:
        at = session.lengths[0]
        draft = text[at : at + min(session.room()[0], 8)]
        session.forward(chains(draft))
        session.commit([list(range(int(rng.integers(0, len(draft) + 1))))])
    tiers.append(session._cache.tier)
    for tier in tiers:
        assert tier.sealed == (24,)
        assert tier.log == [(0, layer, 8) for _ in range(3) for layer in range(3)]
        for mine, first in zip(tier.held[0], tiers[0].held[0], strict=True):
            assert torch.equal(mine, first)


def test_a_forest_stays_within_the_room(loaded):
    session = loaded("llama").open(2, CAPACITY, Blocks())
    session.prefill([[1] * 9, [1] * 2])
    # Row 0 seals 8 tokens at length 11, so nodes may stand at 9 and 10; row 1 may go to 10.
    assert session.room() == (2, 9)
    with pytest.raises(ValueError, match=r"row 0 has room for 2 tokens"):
        session.forward(chains([1, 2, 3], [1]))
    session.forward(chains([1, 2], [1] * 9))
    session.commit([[0, 1], []])
    assert session.room() == (8, 9)
    with pytest.raises(PromptError):
        session.prefill([[1] * CAPACITY, []])


def test_crop_stops_at_what_is_sealed(loaded):
    session = loaded("llama").open(1, CAPACITY, Blocks())
    session.prefill([[1] * 13])
    assert not session.caps.crop
    session.crop([11])
    assert session.lengths == (11,)
    # At 10 tokens nothing would be sealed: the cache would not be what plain decoding leaves there.
    with pytest.raises(CapsError, match=r"8 tokens sealed"):
        session.crop([10])


def test_the_open_buffer_is_small(loaded):
    model = loaded("llama")
    dense, form = model.open(1, CAPACITY), model.open(1, CAPACITY, Blocks())
    text = Subject(model=model).ids(CAPACITY - 1)
    dense.prefill([text])
    for token in text:
        form.forward(chains([token]))
        form.commit([[0]])
    parts = form.cache_bytes()
    assert parts["payload"] == dense.cache_bytes()["open"] * 56 // CAPACITY
    assert parts["open"] <= dense.cache_bytes()["open"] * (8 + 3 + 1) // CAPACITY


def test_bytes_shared_between_forks_count_once_each(loaded):
    session = loaded("llama").open(1, CAPACITY, Blocks())
    session.prefill([[1] * 20])
    twin = session.fork([0, 0])
    assert twin.cache_bytes()["payload"] == session.cache_bytes()["payload"] > 0


@pytest.mark.parametrize(("family", "words"), [("gemma2", "caps attention scores"), ("gpt_oss", "attention sinks")])
def test_what_cannot_be_merged_is_refused(loaded, family, words):
    session = loaded(family).open(1, CAPACITY, Blocks())
    with pytest.raises(CapsError, match=words):
        session.prefill([[1, 2, 3]])
