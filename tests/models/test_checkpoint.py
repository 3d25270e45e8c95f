"""Reading checkpoint folders: number forms, integer forms, and every way a file can be damaged."""

import json

import native_tiny
import numpy as np
import pytest
from safetensors.numpy import save_file

from steno.core.errors import ModelError
from steno.models import native
from steno.models.checkpoint import Checkpoint, unpack

RNG = np.random.default_rng(0)


@pytest.fixture
def save(tmp_path):
    """save(tensors, **config) -> Checkpoint of a folder that holds them."""

    def write(tensors, **config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(tensors, str(tmp_path / "model.safetensors"))
        return Checkpoint(tmp_path)

    return write


def pack(ints, bits):
    """The packed form by definition: an unsigned little-endian bit stream per row."""
    half, rows = 1 << (bits - 1), []
    for row in ints:
        number = sum((int(v) + half) << (bits * i) for i, v in enumerate(row))
        words = -(-len(row) * bits // 32)
        rows.append(np.frombuffer(number.to_bytes(words * 4, "little"), "<i4"))
    return np.stack(rows)


def scheme(bits, **weights):
    group = {"weights": {"num_bits": bits, "type": "int", "symmetric": True, **weights}, "targets": ["Linear"]}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 100])
def test_unpack_is_the_bit_stream(bits, columns):
    ints = RNG.integers(-(1 << (bits - 1)), 1 << (bits - 1), (5, columns)).astype(np.int8)
    np.testing.assert_array_equal(unpack(pack(ints, bits), columns, bits), ints)


@pytest.mark.parametrize("bits", [4, 8])
def test_unpack_agrees_with_compressed_tensors(bits):
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    ints = RNG.integers(-(1 << (bits - 1)), 1 << (bits - 1), (6, 50)).astype(np.int8)
    words = helpers.pack_to_int32(torch.from_numpy(ints), bits).numpy()
    np.testing.assert_array_equal(unpack(words, 50, bits), ints)


def test_whole_numbers_with_a_scale_per_row_stay_whole(save):
    ints = RNG.integers(-128, 128, (6, 40)).astype(np.int8)
    scales = RNG.random((6, 1), np.float32)
    for tensors in (
        {"a.weight": ints, "a.weight_scale": scales},
        {"a.weight_packed": pack(ints, 8), "a.weight_scale": scales, "a.weight_shape": np.array([6, 40])},
    ):
        linear = save(tensors, quantization_config=scheme(8)).linear("a.weight", (6, 40))
        assert linear.floats is None
        np.testing.assert_array_equal(linear.ints, ints)
        np.testing.assert_array_equal(linear.scales, scales[:, 0])
        np.testing.assert_array_equal(linear.dense(), ints * scales)


def test_groups_keep_their_scales(save):
    ints = RNG.integers(-8, 8, (6, 64)).astype(np.int8)
    scales = RNG.random((6, 2), np.float32).astype(np.float16)
    tensors = {"a.weight_packed": pack(ints, 4), "a.weight_scale": scales, "a.weight_shape": np.array([6, 64])}
    linear = save(tensors, quantization_config=scheme(4, group_size=32)).linear("a.weight", (6, 64))
    np.testing.assert_array_equal(linear.ints, ints)
    np.testing.assert_array_equal(linear.scales, scales.astype(np.float32))
    np.testing.assert_array_equal(linear.dense(), ints * np.repeat(scales.astype(np.float32), 32, axis=1))


def test_one_scale_for_all(save):
    ints = RNG.integers(-128, 128, (3, 4)).astype(np.int8)
    linear = save({"a.weight": ints, "a.weight_scale": np.array([0.5], np.float32)}).linear("a.weight", (3, 4))
    np.testing.assert_array_equal(linear.dense(), ints * np.float32(0.5))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a.weight": np.zeros((4, 4), np.int8)}, "no scale"),
        (
            {"a.weight": np.zeros((4, 4), np.int8), "a.weight_scale": np.ones((4, 3), np.float32)},
            "neither one scale per row",
        ),
        ({"a.weight": np.zeros((4, 5), np.float32)}, r"shape \[4, 5\], config.json asks for \[4, 4\]"),
        ({"b.weight": np.zeros((4, 4), np.float32)}, "a.weight is missing"),
        ({"a.weight": np.full((4, 4), np.nan, np.float32)}, "a.weight holds NaN"),
        ({"a.weight": np.full((4, 4), np.inf, np.float16)}, "a.weight holds NaN or infinity"),
        ({"a.weight": np.zeros((4, 4), np.int64)}, "dtype I64"),
        (
            {
                "a.weight": np.zeros((4, 4), np.int8),
                "a.weight_scale": np.ones(4, np.float32),
                "a.weight_zero_point": np.ones(4, np.int8),
            },
            "zero points",
        ),
        (
            {
                "a.weight": np.zeros((4, 4), np.int8),
                "a.weight_scale": np.ones(4, np.float32),
                "a.weight_g_idx": np.ones(4, np.int32),
            },
            "activation order",
        ),
        (
            {"a.weight_packed": np.zeros((4, 3), np.int32), "a.weight_scale": np.ones((4, 1), np.float32)},
            "does not hold a 4 x 4",
        ),
        ({"a.weight_packed": np.zeros((4, 1), np.int32), "a.weight_shape": np.array([4, 8])}, r"shape \[4, 8\]"),
    ],
)
def test_tensors_it_refuses(save, tensors, words):
    with pytest.raises(ModelError, match=words):
        save(tensors).linear("a.weight", (4, 4))


def test_headers_not_aligned_to_the_numbers(tmp_path):
    """safetensors pads its header, the format does not ask for it."""
    values = np.arange(6, dtype="<f4")
    header = json.dumps({"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}).encode()
    header += b" " * (3 - len(header) % 4)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    read = Checkpoint(tmp_path).floats("a", (6,))
    assert read.flags.aligned
    np.testing.assert_array_equal(read, values)


def test_damaged_files(save, tmp_path):
    good = save({"a.weight": np.zeros((64, 64), np.float32)})
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    assert good.unread() == ["a.weight"]
    for bad, words in (
        (data[:-1], "truncated: tensor a.weight ends at byte"),
        (data[:40], "truncated: its header"),
        (data[:4], "truncated"),
        (b"", "truncated"),
        (b"\xff" * 200, "truncated: its header"),
        (data[:8] + b"[" * (len(data) - 8), "not valid JSON"),
        (data.replace(b'"F32"', b'"F99"'), "dtype F99"),
        (data.replace(b"[64,64]", b"[64,65]"), "spans 16384 bytes"),
    ):
        file.write_bytes(bad)
        with pytest.raises(ModelError, match=words):
            Checkpoint(tmp_path)


def test_damaged_folders(save, tmp_path):
    with pytest.raises(ModelError, match="is not a folder"):
        Checkpoint(tmp_path / "nothing")
    with pytest.raises(ModelError, match="json is missing"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="expected a JSON object"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="convert it with transformers"):
        Checkpoint(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for places, words in (
        ({"a": "one.safetensors"}, "shard of the model is missing"),
        ({"a": "../one.safetensors"}, "outside the folder"),
        (3, "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(ModelError, match=words):
            Checkpoint(tmp_path)
    index.unlink()
    save({"a": np.zeros(3, np.float32)})
    index.write_text(json.dumps({"weight_map": {"b": "model.safetensors"}}))
    with pytest.raises(ModelError, match="b is named by"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_an_int8_folder_runs_on_its_own_numbers(tmp_path, tied):
    """The engine's logits of a quantised folder are those of the same integers rounded by the engine from their floats:
    nothing is rounded twice, in either storage form."""
    pytest.importorskip("torch")
    native_tiny.make("llama", tmp_path / "plain", tie_word_embeddings=tied)
    plain = Checkpoint(tmp_path / "plain")
    packed, whole, floats = {}, {}, {}
    for name in plain.entries:
        values = plain.floats(name)
        if values.ndim == 1 or (name == "model.embed_tokens.weight" and not tied):
            packed[name] = whole[name] = floats[name] = values
            continue
        # Scales are powers of two and every row reaches 127, so that rounding the floats finds the same integers again.
        scale = np.exp2(np.floor(np.log2(np.abs(values).max(1, keepdims=True) / 127))).astype(np.float32)
        ints = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
        ints[:, 0] = 127
        whole |= {name: ints, f"{name}_scale": scale}
        packed |= {f"{name}_packed": pack(ints, 8), f"{name}_scale": scale, f"{name}_shape": np.array(ints.shape)}
        floats[name] = ints * scale
    logits = []
    for tensors, extra in (
        (floats, {}),
        (whole, {"quantization_config": scheme(8)}),
        (packed, {"quantization_config": scheme(8)}),
    ):
        (tmp_path / "plain" / "config.json").write_text(json.dumps({**plain.config, **extra}))
        save_file(tensors, str(tmp_path / "plain" / "model.safetensors"))
        session = native.load(tmp_path / "plain").open(1, 64)
        logits.append(np.array(session.forward(native_tiny.forest([native_tiny.chain(native_tiny.ids(20))])).logits))
    assert np.ptp(logits[0]) > 1
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])
