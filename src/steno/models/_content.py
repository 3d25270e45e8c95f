"""What a model is, by content: independent of its folder's name, of how its tensors are spread over files, and of how
the engine lays them out."""

import hashlib
import json
from pathlib import Path

from steno.core.errors import ModelError

TALK = ("_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype")
"""Keys of a config that change no number."""


def content_id(folder: Path) -> str:
    """SHA-256 of the configuration and of every tensor's name, type, shape and bytes, in the order of names."""
    digest = hashlib.sha256()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    digest.update(json.dumps({k: v for k, v in config.items() if k not in TALK}, sort_keys=True).encode())
    places: dict[str, tuple[Path, int, int, str]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            for name, entry in json.loads(stream.read(size)).items():
                if name != "__metadata__":
                    low, high = entry["data_offsets"]
                    facts = f"{name}\n{entry['dtype']}\n{entry['shape']}\n"
                    places[name] = file, 8 + size + low, high - low, facts
    if not places:
        raise ModelError(f"{folder} has no safetensors files. Save the model in that form.")
    for name in sorted(places):
        file, start, left, facts = places[name]
        digest.update(facts.encode())
        with open(file, "rb") as stream:
            stream.seek(start)
            while left > 0 and (block := stream.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()
