"""GGUF files: every type that the gguf package can dequantise, names and values as transformers makes them, headers
that lie. Files are written with the gguf package's writer, whose own quantisers and dequantiser judge."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.checkpoint import gguf as reading
from nett.core.checkpoint import open_checkpoint
from nett.core.errors import Refused
from nett.core.tiny import write_llama
from support.gguf_files import gguf_name, write_llama_gguf
from support.tensors import Array, read_tensors

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

PLAIN = ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64")


def can_dequantise(kind: Any) -> bool:
    try:
        gguf.dequantize(np.zeros(gguf.GGML_QUANT_SIZES[kind][1], np.uint8), kind)
    except NotImplementedError:
        return False
    return True


PACKED = [k for k in gguf.GGMLQuantizationType if k.name not in PLAIN]
READABLE = [k for k in PACKED if can_dequantise(k)]


def one_tensor(path: Path, blob: bytes, kind: int, shape: tuple[int, ...], name: str = "w") -> Path:
    """A GGUF file by hand (version 3): one metadata pair, one tensor."""
    key, value = b"general.architecture", b"bench"
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", len(key)) + key
    header += struct.pack("<IQ", 8, len(value)) + value
    header += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
    header += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", kind, 0)
    path.write_bytes(header + bytes(-len(header) % 32) + blob)
    return path


def test_the_list_is_not_empty() -> None:
    assert {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ1_M"} <= {
        k.name for k in READABLE
    }


@pytest.mark.parametrize("kind", READABLE, ids=lambda k: k.name)
def test_every_type_as_the_gguf_package_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    """Blocks of random bytes, NaN and infinite scales among them; whole, and in ranges that cut blocks and pieces."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = 3, 5 * block
    blob = np.random.default_rng(int(kind)).integers(0, 256, (rows, 5 * size), dtype=np.uint8)
    monkeypatch.setattr(reading, "_PIECE", 2 * block)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(blob, kind).astype(np.float32).reshape(-1)
    with open_checkpoint(one_tensor(tmp_path / "x.gguf", blob.tobytes(), int(kind), (rows, columns))) as checkpoint:
        info = checkpoint.tensors["w"]
        assert (info.stored, info.dtype.name, info.shape) == (kind.name, "F32", (rows, columns))
        assert info.nbytes == blob.size
        np.testing.assert_array_equal(checkpoint.read("w"), expected)
        for start, stop in ((0, 1), (block - 1, block + 1), (block // 2, 4 * block + 3), (3 * block, 15 * block)):
            np.testing.assert_array_equal(checkpoint.read("w", start, stop), expected[start:stop])


@pytest.mark.parametrize("kind", [k for k in PACKED if k not in READABLE], ids=lambda k: k.name)
def test_types_that_nobody_dequantises_are_named(tmp_path: Path, kind: Any) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    with pytest.raises(Refused, match=f"type {kind.name}, which the gguf package cannot"):
        open_checkpoint(one_tensor(tmp_path / "x.gguf", bytes(size), int(kind), (block,)))


def test_a_type_of_the_future(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="ggml type 999, which the gguf package does not know"):
        open_checkpoint(one_tensor(tmp_path / "x.gguf", bytes(64), 999, (32,)))


def test_three_types_from_their_definition(tmp_path: Path) -> None:
    """ggml's block formats, written out: Q4_0 is d (q - 8), Q4_1 d q + m, Q8_0 d q; low nibbles come first."""
    rng = np.random.default_rng(0)
    scale, offset = np.float16(0.37), np.float16(-1.25)
    nibbles, signed = rng.integers(0, 16, 32), rng.integers(-128, 128, 32)
    packed = (nibbles[:16] | nibbles[16:] << 4).astype(np.uint8).tobytes()
    d, m = np.float32(scale), np.float32(offset)
    cases = {
        2: (scale.tobytes() + packed, d * (nibbles - 8).astype(np.float32)),
        3: (scale.tobytes() + offset.tobytes() + packed, d * nibbles.astype(np.float32) + m),
        8: (scale.tobytes() + signed.astype(np.int8).tobytes(), d * signed.astype(np.float32)),
    }
    for kind, (blob, expected) in cases.items():
        with open_checkpoint(one_tensor(tmp_path / f"{kind}.gguf", blob, kind, (32,))) as checkpoint:
            np.testing.assert_array_equal(checkpoint.values("w"), expected)


@pytest.mark.parametrize(
    ("kind", "raw"), [("F64", "<f8"), ("I8", "i1"), ("I16", "<i2"), ("I32", "<i4"), ("I64", "<i8")]
)
def test_plain_numbers_stay_what_they_are(tmp_path: Path, kind: str, raw: str) -> None:
    values = np.arange(-20, 22).astype(raw)
    file = one_tensor(tmp_path / "x.gguf", values.tobytes(), int(gguf.GGMLQuantizationType[kind]), (6, 7))
    with open_checkpoint(file) as checkpoint:
        assert checkpoint.tensors["w"].dtype.name == kind and checkpoint.tensors["w"].offset > 0
        np.testing.assert_array_equal(checkpoint.read("w", 3, 40), values[3:40])


# -- names and values under Hugging Face's names -------------------------------------------------------------------


def test_rows_of_q_and_k_are_put_back(tmp_path: Path) -> None:
    """What the writer interleaved comes back in order: whole, and in ranges within, across and beyond heads."""
    model = write_llama(tmp_path / "pico", dtype="F32", tied=False)
    before = read_tensors(model)
    with open_checkpoint(write_llama_gguf(tmp_path / "p.gguf", model)) as checkpoint:
        assert checkpoint.tensors.keys() == before.keys()
        rng = np.random.default_rng(0)
        for name, expected in before.items():
            flat = expected.reshape(-1)
            assert checkpoint.tensors[name].shape == expected.shape
            np.testing.assert_array_equal(checkpoint.values(name), flat)
            for start, stop in np.sort(rng.integers(0, flat.size + 1, (12, 2)), axis=1):
                np.testing.assert_array_equal(checkpoint.values(name, int(start), int(stop)), flat[start:stop])


COMMON = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {}, "qwen2": {}, "qwen3": {"head_dim": 128}, "gemma2": {"sliding_window": 16}, "gemma3": {},
    "stablelm": {}, "starcoder2": {}, "nemotron": {},
}  # fmt: skip


def write_family(path: Path, family: str, options: dict[str, Any]) -> Path:
    """A random model of a family; its GGUF keys are transformers' own table, read backwards."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations import GGUF_CONFIG_MAPPING

    config = AutoConfig.for_model({"gemma3": "gemma3_text"}.get(family, family), **(COMMON | options))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    name = {"mistral": "llama"}.get(family, family)
    writer = gguf.GGUFWriter(str(path), name)
    for key, attribute in GGUF_CONFIG_MAPPING[family].items():
        value = 10000.0 if attribute == "rope_theta" else getattr(config, attribute or "", None)
        if isinstance(value, int):
            writer.add_uint32(f"{name}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{name}.{key}", value)
    writer.add_token_list([f"t{i}" for i in range(64)])
    number = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == name)
    names = gguf.get_tensor_name_map(number, 2)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, leaf = key.rpartition(".")
        known = names.get_name(stem) or names.get_name(stem.partition(".")[2])
        values = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(key))).numpy()
        writer.add_tensor(f"{known}.{leaf}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_that_transformers_loads(tmp_path: Path, family: str) -> None:
    """Bit for bit, for every architecture whose names nett takes over: permuted rows, norms stored plus one."""
    from transformers import AutoModelForCausalLM

    file = write_family(tmp_path / "x.gguf", family, FAMILIES[family])
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file=file.name, dtype=torch.float32)
    expected = {n: t.numpy() for n, t in model.state_dict().items()}
    with open_checkpoint(file) as checkpoint:
        assert checkpoint.renamed, checkpoint.reason
        assert checkpoint.config()["architectures"] == [type(model).__name__]
        tied = set(model.all_tied_weights_keys)
        assert checkpoint.tensors.keys() <= expected.keys() <= checkpoint.tensors.keys() | tied
        for name, info in checkpoint.tensors.items():
            np.testing.assert_array_equal(checkpoint.values(name).reshape(info.shape), expected[name], err_msg=name)


def test_architectures_that_rearrange_more_keep_their_names(tmp_path: Path) -> None:
    file = one_tensor(tmp_path / "x.gguf", bytes(64), 0, (16,), "blk.0.attn_qkv.weight")
    file.write_bytes(file.read_bytes().replace(b"bench", b"bloom"))
    with open_checkpoint(file) as checkpoint:
        assert not checkpoint.renamed and "'bloom'" in str(checkpoint.reason) and checkpoint.config() is None
        assert list(checkpoint.tensors) == ["blk.0.attn_qkv.weight"]


# -- headers that lie ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pico")
    return write_llama_gguf(folder / "p.gguf", write_llama(folder / "pico", dtype="F32"), "Q8_0")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.1, 0.5, 0.999])
def test_truncated(pico: Path, tmp_path: Path, share: float) -> None:
    blob = pico.read_bytes()
    (tmp_path / "x.gguf").write_bytes(blob[: int(len(blob) * share)])
    with pytest.raises(Refused, match=r"truncated|ends after the file|said to begin"):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, b"GGML", "does not begin with 'GGUF'"),
        (4, struct.pack("<I", 1), "GGUF version 1"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, struct.pack("<Q", 1 << 60), "tensors"),
        (16, struct.pack("<Q", 1 << 62), "keys"),
        (24, struct.pack("<Q", 1 << 63), "metadata key"),
    ],
)
def test_lying_numbers(pico: Path, tmp_path: Path, at: int, value: bytes, said: str) -> None:
    blob = bytearray(pico.read_bytes())
    blob[at : at + len(value)] = value
    (tmp_path / "x.gguf").write_bytes(blob)
    with pytest.raises(Refused, match=said):
        open_checkpoint(tmp_path / "x.gguf")


def test_metadata_of_another_model_keep_the_gguf_names(tmp_path: Path) -> None:
    """Heads that do not fit the rows, more layers than tensors: not believed, and said."""
    model = write_llama(tmp_path / "pico", dtype="F32")
    file = write_llama_gguf(tmp_path / "x.gguf", model)
    honest = file.read_bytes()
    key = b"llama.attention.head_count" + struct.pack("<I", 4)
    file.write_bytes(honest.replace(key + struct.pack("<I", 4), key + struct.pack("<I", 3)))
    with open_checkpoint(file) as checkpoint:
        assert not checkpoint.renamed and gguf_name("model.norm.weight") in checkpoint.tensors
    key = b"llama.block_count" + struct.pack("<I", 4)
    file.write_bytes(honest.replace(key + struct.pack("<I", 2), key + struct.pack("<I", 90_000_000)))
    with pytest.raises(Refused, match="says that it has 90000000 layers"):
        open_checkpoint(file)


def test_parts_of_a_split_file_are_refused(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "pico", dtype="F32")
    file = write_llama_gguf(tmp_path / "x.gguf", model, keys={"split.count": 3})
    with pytest.raises(Refused, match="split into several files"):
        open_checkpoint(file)


def test_two_files_in_a_folder_must_be_told_apart(pico: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(pico.read_bytes())
    with pytest.raises(Refused, match=r"holds 2 GGUF files(?s:.*)a\.gguf"):
        open_checkpoint(tmp_path)
    (tmp_path / "b.gguf").unlink()
    with open_checkpoint(tmp_path) as checkpoint:
        values: Array = checkpoint.values("model.norm.weight")
        assert np.isfinite(values).all()
