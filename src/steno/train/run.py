"""One whole run: corpus, tokenizer, packed tokens, training, export, evaluation."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from steno.core.errors import OutputError, UserError
from steno.train import checkpoint, corpus, curve, export, vocab
from steno.train import model as models
from steno.train import recipe as recipes
from steno.train.evaluate import bits_per_byte, xz_bits_per_byte
from steno.train.loop import Run, restore, train
from steno.train.pack import Packed, pack

_talk = Console(stderr=True)


def run(
    recipe: Path,
    *,
    out: Path,
    minutes: float | None,
    resume: bool,
    device: str | None,
    prepare_only: bool,
    finish_only: bool,
    score: bool,
) -> dict[str, object]:
    """See `steno.train.main`."""
    plan = recipes.load(recipe)
    where = _device(device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Output {out}: cannot be made ({error.strerror}). Choose another --out.") from None
    if not (resume or prepare_only or finish_only) and (out / checkpoint.NAME).exists():
        raise OutputError(
            f"Output {out}: it holds a run already. Add --resume to go on with it, or choose another --out."
        )
    packed = prepare(plan, out)
    if prepare_only:
        return {"train_tokens": {name: len(stream) for name, stream in packed.train.items()}}
    job = Run(recipe=plan, packed=packed, out=out, device=where, minutes=minutes, fingerprint=_fingerprint(plan, out))
    trained = restore(job) if finish_only else train(job, resume=resume)
    curve.draw(
        out / "log.jsonl", out / "curve.png", f"{plan.name}: {models.num_parameters(trained) / 1e6:.1f} M parameters"
    )
    models.save_master(trained, out / "master")
    size = export.export(trained, out / "tokenizer", out / "model")
    report = {
        "name": plan.name,
        "parameters": models.num_parameters(trained),
        "unique_tokens": {name: len(stream) for name, stream in packed.train.items()},
        "steps_log": _last(out / "log.jsonl"),
        "size": asdict(size) | {"total": size.total},
        "bits_per_byte": _evaluation(plan, trained, packed, out, where) if score else None,
        "device": torch.cuda.get_device_name() if where.startswith("cuda") else "cpu",
        "torch": torch.__version__,
    }
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def prepare(plan: recipes.Recipe, out: Path) -> Packed:
    """The packed tokens of a run folder, made from the recipe's sources where they are not there yet."""
    tokens, tokenizer = out / "tokens", out / "tokenizer"
    if not (tokens / "index.json").is_file():
        if not (out / "corpus" / "manifest.json").is_file():
            _talk.print("gathering the corpus")
            found = corpus.build(plan, out / "corpus")
            if found["missing_sources"]:
                _talk.print(f"sources not on this machine: {', '.join(map(str, found['missing_sources']))}")  # type: ignore[arg-type]
        documents = list(corpus.load(out / "corpus", "train"))
        if (tokenizer / "tokenizer.json").is_file():
            words = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        else:
            _talk.print("training the tokenizer")
            words = vocab.train(documents, plan.bucket, plan.tokenizer, plan.shape.context, tokenizer)
        _talk.print("packing tokens")
        pack(documents, corpus.load(out / "corpus", "valid"), plan.bucket, words, tokens)
    return Packed(tokens)


def _evaluation(
    plan: recipes.Recipe, model: LlamaForCausalLM, packed: Packed, out: Path, device: str
) -> dict[str, object]:
    """Bits per byte of the master weights and of the stored int8 weights; xz on the same held-out bytes."""
    _talk.print("scoring held-out documents")
    model.eval()
    master = bits_per_byte(lambda ids: models.logits(model, ids), packed, plan.shape.context, device)
    model.load_state_dict(export.meaning(out / "model", model))
    small = bits_per_byte(lambda ids: models.logits(model, ids), packed, plan.shape.context, device)
    words = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))
    xz = {}
    for name, texts in packed.texts.items():
        ids = [packed.valid[name][t.start : t.stop].tolist() for t in texts]
        xz[name] = xz_bits_per_byte("".join(words.decode_batch(ids, skip_special_tokens=False)).encode("utf-8"))
    return {"master": master, "int8": small, "xz -9e": xz}


def _device(device: str | None) -> str:
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"Device {name!r}: torch cannot use it here ({str(error).splitlines()[0]}). Try --device cpu."
        ) from None
    return name


def _fingerprint(plan: recipes.Recipe, out: Path) -> str:
    """What a checkpoint depends on: the recipe less its length, and the data."""
    values = asdict(plan)
    for free in ("steps", "compile", "checkpoint_s", "eval_every", "log_every", "micro_batch"):
        values["schedule"].pop(free)
    values.pop("source")
    data = (out / "tokens" / "index.json").read_bytes()
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode() + data).hexdigest()


def _last(log: Path) -> dict[str, object]:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    found: dict[str, object] = {}
    for row in rows:
        found |= row
    return found
