"""Training a byte-level BPE tokenizer for code and English.

No normaliser, no added space, a token for each of the 256 bytes: decoding an encoding gives the same bytes, always.
Digits stand alone. A newline and the indentation after it are two tokens, so that a prompt that ends at either is cut
where training texts were cut.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from steno.train.base import Document
from steno.train.recipe import Bucket, TokenizerSpec

END = "<|end|>"
PATTERN = (
    r"(?<=\n)[ \t]+"  # indentation
    r"|[^\n\r\p{L}\p{N}]?\p{L}+"  # a word, with the one mark or space before it
    r"|\p{N}"  # one digit
    r"| ?[^\s\p{L}\p{N}]+"  # marks
    r"|\n+"
    r"|\s+(?!\S)|\s+"
)
_PIECE = 20_000


def train(
    documents: Sequence[Document], buckets: Sequence[Bucket], spec: TokenizerSpec, context: int, out: Path
) -> Tokenizer:
    """Train on a sample that follows the buckets' weights; write `tokenizer.json` and `tokenizer_config.json`."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(documents, buckets, spec.sample_mb), trainer)
    out.mkdir(parents=True, exist_ok=True)
    # Compact: the pretty-printed form is half as large again, and every byte of nib counts.
    (out / "tokenizer.json").write_text(
        json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "model_max_length": context,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return tokenizer


def sample(documents: Sequence[Document], buckets: Sequence[Bucket], sample_mb: float) -> Iterator[str]:
    """Pieces of documents at random, each bucket as often as its weight says, at most `sample_mb` in all."""
    total = sum(bucket.weight for bucket in buckets)
    rng = random.Random(0)
    for bucket in buckets:
        left = sample_mb * 1e6 * bucket.weight / total
        pool = [d for d in documents if d.bucket == bucket.name]
        pieces = [(n, at) for n, d in enumerate(pool) for at in range(0, len(d.text), _PIECE)]
        rng.shuffle(pieces)
        for number, at in pieces:
            if left <= 0:
                break
            text = pool[number].text[at : at + _PIECE]
            left -= len(text)
            yield text
