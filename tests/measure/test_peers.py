"""The transformers peer: greedy ids, counted by ids, times apart."""

import pytest

from steno.core.errors import ModelError
from steno.measure.peers import peer_of, transformers_generate
from steno.measure.speed import Arm, Timing, race

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random Llama whose generation settings ask for sampling and a penalty, which the arm has to overrule."""
    path = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, bos_token_id=1, eos_token_id=2
    )
    model.save_pretrained(path)
    return path


def greedy(folder, prompt, count):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def test_it_is_plain_greedy(folder):
    arm = transformers_generate(folder, ignore_eos=True)
    want = greedy(folder, [5, 6, 7], 12)
    got = arm.run([5, 6, 7], 12)
    assert got.tokens == want
    assert got.decoded == 11
    assert got.prefill_s > 0
    assert got.decode_s > 0


def test_it_ends_at_an_end_token_unless_told_to_go_on(folder):
    want = greedy(folder, [5, 6, 7], 12)
    config = transformers.GenerationConfig.from_pretrained(folder)
    config.eos_token_id = [2, want[3]]
    config.save_pretrained(folder)
    cut = want.index(want[3]) + 1
    assert transformers_generate(folder).run([5, 6, 7], 12).tokens == want[:cut]
    assert len(transformers_generate(folder, ignore_eos=True).run([5, 6, 7], 12).tokens) == 12


def test_threads_are_set(folder):
    transformers_generate(folder, threads=1).run([5], 1)
    assert torch.get_num_threads() == 1


def test_a_peer_is_compared_by_ids(folder):
    prompts = [[5, 6, 7], [9]]
    answers = {(5, 6, 7): greedy(folder, prompts[0], 4), (9,): (0, 0, 0, 0)}

    def run(prompt, max_tokens):
        return Timing(tokens=answers[tuple(prompt)], prefill_s=1.0, decode_s=1.0, decoded=4)

    arms = [Arm("base", run), transformers_generate(folder, ignore_eos=True)]
    peer = peer_of(race(arms, prompts, max_tokens=4, repeats=1, warm=0), 1)
    assert (peer.identical, peer.compared, peer.name) == (1, 2, "transformers")
    assert peer.version == transformers.__version__
    assert peer.speed.tokens == 8


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="cannot load"):
        transformers_generate(tmp_path)
