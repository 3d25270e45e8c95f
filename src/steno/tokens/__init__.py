"""Text to token ids and back. `load(folder)` reads a tokenizer without importing torch or transformers."""

from steno.tokens.base import StreamDecoder, Tokenizer
from steno.tokens.hf import load
from steno.tokens.words import Words

__all__ = ["StreamDecoder", "Tokenizer", "Words", "load"]
