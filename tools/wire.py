"""What `cache.cachegen` sends of nib's cache of a held-out module, by level: `python tools/wire.py`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from evidence import modules  # noqa: E402


def main() -> int:
    from steno.cache._ledger import bits_per_value
    from steno.cache._paged import PagedTier
    from steno.cache._wire import LEVELS
    from steno.cache.cachegen import CacheGen, receive, send
    from steno.models import NIB, ModelSpec, load
    from steno.tokens import load as load_tokenizer

    ids = load_tokenizer(NIB).encode(modules()[0][1])
    model = load(ModelSpec(source="nib", backend="hf", threads=1))
    for knob in (CacheGen(residual=0), CacheGen(key_bits=(8,), value_bits=(8,), residual=0)):
        session = model.open(1, len(ids) + 1, knob)
        session.prefill([ids])
        tier = session._cache.tier  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(tier, PagedTier)
        tokens = tier.sealed[0]
        held = sum(t.untyped_storage().nbytes() for found in tier.storages().values() for t in found)
        print(f"{knob}\n  {tokens} tokens, held: {bits_per_value(held, tier.shape, tokens):.2f} bits per value")
        for level in range(LEVELS):
            data = b"".join(send(knob, tier, 0, lambda sizes, level=level: level))
            got = receive(knob, tier.shape, [data])
            assert got.sealed == (tokens,)
            bits = bits_per_value(len(data), tier.shape, tokens)
            print(f"  level {level}: {len(data):,} bytes, {bits:.2f} bits per value")
    return 0


if __name__ == "__main__":
    sys.exit(main())
