"""From a checkpoint to the engine's matrices: which number form each takes, and every tensor to its place."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steno.core.errors import ModelError, UserError, nearest

from ._config import Shape
from ._engine import Embedding, Kind, Norm, Part
from ._engine import Model as Engine
from .checkpoint import Checkpoint, Linear


@dataclass(frozen=True, slots=True)
class Form:
    """Number forms of the layers' matrices and of the head; `group` columns share a scale at 4 bits."""

    name: str
    kind: Kind
    head: Kind
    group: int = 32


# Four bits are too few for a head by rounding alone, and it is a small part of most models: it keeps eight.
FORMS = {
    "int8": Form("int8", Kind.I8, Kind.I8),
    "int4": Form("int4", Kind.I4, Kind.I8, 32),
    "int4-64": Form("int4-64", Kind.I4, Kind.I8, 64),
    "int4-128": Form("int4-128", Kind.I4, Kind.I8, 128),
    "bf16": Form("bf16", Kind.BF16, Kind.BF16),
    "fp32": Form("fp32", Kind.F32, Kind.F32),
}
"""Number forms by the name a user gives; int4 has one float16 scale per 32, 64 or 128 columns."""


def choose_form(checkpoint: Checkpoint, weights: str) -> Form:
    """The form a user asked for; "auto" follows the checkpoint. Raises UserError."""
    if weights == "auto":
        groups = checkpoint.group_sizes
        return next(
            (form for form in FORMS.values() if form.kind is Kind.I4 and groups == (form.group,)), FORMS["int8"]
        )
    if weights not in FORMS:
        raise UserError(f"weights: the native backend has no form {weights!r}. {nearest(weights, ['auto', *FORMS])}")
    return FORMS[weights]


def embedding_form(checkpoint: Checkpoint, shape: Shape) -> Embedding:
    """Where the embedding's rows come from: a tied model's from its head, else as the checkpoint has them."""
    if shape.tied:
        return Embedding.IN_HEAD
    name = "model.embed_tokens.weight"
    dtype = checkpoint.entry(name).dtype if name in checkpoint else ""
    return {"F16": Embedding.F16, "BF16": Embedding.BF16}.get(dtype, Embedding.F32)


def fill(engine: Engine, checkpoint: Checkpoint, shape: Shape, form: Form) -> None:
    """Hand every tensor to the engine; what is left over is an error, because it would change the model."""

    def put(part: Part, layer: int, row: int, name: str, size: tuple[int, int], *, biased: bool = False) -> None:
        _put(engine, form, (part, layer, row), checkpoint.linear(f"{name}.weight", size))
        if biased:
            engine.put_bias(part, layer, row, checkpoint.floats(f"{name}.bias", size[:1]))

    width, q, kv = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for layer in range(shape.layers):
        base = f"model.layers.{layer}"
        row = 0
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            put(Part.QKV, layer, row, f"{base}.self_attn.{name}_proj", (rows, width), biased=shape.qkv_bias)
            row += rows
        put(Part.OUT, layer, 0, f"{base}.self_attn.o_proj", (width, q), biased=shape.out_bias)
        put(Part.GATE_UP, layer, 0, f"{base}.mlp.gate_proj", (shape.inner, width), biased=shape.mlp_bias)
        put(Part.GATE_UP, layer, engine.gate_rows, f"{base}.mlp.up_proj", (shape.inner, width), biased=shape.mlp_bias)
        put(Part.DOWN, layer, 0, f"{base}.mlp.down_proj", (width, shape.inner), biased=shape.mlp_bias)
        engine.put_norm(Norm.IN, layer, checkpoint.floats(f"{base}.input_layernorm.weight", (width,)))
        engine.put_norm(Norm.MID, layer, checkpoint.floats(f"{base}.post_attention_layernorm.weight", (width,)))
        if shape.qk_norm:
            engine.put_norm(Norm.Q, layer, checkpoint.floats(f"{base}.self_attn.q_norm.weight", (shape.head_dim,)))
            engine.put_norm(Norm.K, layer, checkpoint.floats(f"{base}.self_attn.k_norm.weight", (shape.head_dim,)))
    engine.put_norm(Norm.OUT, 0, checkpoint.floats("model.norm.weight", (width,)))

    table = "model.embed_tokens"
    name = table if shape.tied or not checkpoint.holds("lm_head.weight") else "lm_head"
    if name == table and not shape.tied:
        checkpoint.entry("lm_head.weight")
    put(Part.HEAD, 0, 0, name, (shape.vocab, width))
    _embed(engine, checkpoint, f"{table}.weight", shape)
    known = ("rotary_emb.inv_freq", "_scale", "_zero_point", "_shape")
    checkpoint.skip(n for n in checkpoint.unread() if n.endswith(known) or (shape.tied and n == "lm_head.weight"))
    left = checkpoint.unread()
    if left:
        raise ModelError(
            f"{checkpoint.path}: the native backend has no place for tensor {left[0]}"
            f"{f' and {len(left) - 1} more' if len(left) > 1 else ''}. Use --backend hf."
        )


def _put(engine: Engine, form: Form, place: tuple[Part, int, int], matrix: Linear) -> None:
    """Rows of a matrix to their place (part, layer, first row)."""
    kind = form.head if place[0] is Part.HEAD else form.kind
    ints, scales = matrix.ints, matrix.scales
    if ints is not None and scales is not None:
        if kind is Kind.I8 and scales.ndim == 1:
            engine.put_bytes(*place, np.ascontiguousarray(ints), scales)
            return
        if kind is Kind.I4 and (halves := _nibble_scales(ints, scales, form.group)) is not None:
            engine.put_nibbles(*place, np.ascontiguousarray(ints), halves)
            return
    engine.put_floats(*place, np.ascontiguousarray(matrix.dense()))


def _nibble_scales(
    ints: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], group: int
) -> npt.NDArray[np.uint16] | None:
    """Scales [N, K / group] as float16 bits, None where the matrix is another form or would change in this one."""
    scales = scales.reshape(len(ints), -1)
    if scales.shape[1] * group != ints.shape[1] or ints.min() < -8 or ints.max() > 7:
        return None
    halves = scales.astype(np.float16)
    exact = np.array_equal(halves.astype(np.float32), scales) and not np.signbit(halves).any()
    return halves.view(np.uint16) if exact else None


def _embed(engine: Engine, checkpoint: Checkpoint, name: str, shape: Shape) -> None:
    form, size = embedding_form(checkpoint, shape), (shape.vocab, shape.width)
    if form in (Embedding.F16, Embedding.BF16):
        engine.put_embedding_half(checkpoint.halves(name, size))
    elif form is Embedding.F32:
        engine.put_embedding(np.ascontiguousarray(checkpoint.linear(name, size).dense()))
