"""A tiny Llama with a byte tokenizer in a folder: real files, real backends, milliseconds."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 259 ids (bytes, and three special ones) and 256 positions."""
    import tokenizers
    import torch
    import transformers as hf

    folder = tmp_path_factory.mktemp("tiny")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    engine.decoder = tokenizers.decoders.ByteLevel()  # type: ignore[assignment]
    engine.add_special_tokens(["<s>", "</s>", "<pad>"])
    engine.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=engine.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.15,
        bos_token_id=None, eos_token_id=257, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.no_grad():
        hf.LlamaForCausalLM(config).save_pretrained(folder)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return folder
