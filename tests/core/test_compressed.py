"""compressed-tensors folders as dense models: against plain NumPy written from the layout, and against what the
package itself makes of small matrices (compressed-tensors-0.18.0.json; the layout of 0.20.0 is the same)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nett.core.checkpoint import open_checkpoint
from nett.core.checkpoint.compressed_numbers import unpacked_rows
from nett.core.errors import Refused
from support.quantised import packed_words, quantization_config, stored, write_quantised
from support.tensors import write_raw, write_tensors

ORACLE = json.loads(Path(__file__).with_name("compressed-tensors-0.18.0.json").read_text())
NAMES = {
    "bfloat16": "BF16", "float16": "F16", "float32": "F32", "int32": "I32", "int64": "I64", "int8": "I8",
    "float8_e4m3fn": "F8_E4M3",
}  # fmt: skip
MODULE = "model.layers.0.mlp.up_proj"


def write_stored(folder: Path, parts: dict[str, Any], said: dict[str, Any]) -> Path:
    header, blob = {}, b""
    for leaf, part in parts.items():
        one = base64.b64decode(part["bytes"])
        header[f"{MODULE}.{leaf}"] = {
            "dtype": NAMES[part["dtype"]], "shape": part["shape"], "data_offsets": [len(blob), len(blob) + len(one)],
        }  # fmt: skip
        blob += one
    folder.mkdir(exist_ok=True)
    write_raw(folder / "model.safetensors", header, blob)
    (folder / "config.json").write_text(json.dumps({"quantization_config": said}))
    return folder


@pytest.mark.parametrize("name", [n for n in ORACLE if n != "made by"])
def test_as_the_package_decompresses(tmp_path: Path, name: str) -> None:
    """Every bit, whole and in ranges that cut rows, words and groups."""
    case = ORACLE[name]
    folder = write_stored(tmp_path, case["stored"], quantization_config(case["format"], case["weights"]))
    expected = base64.b64decode(case["dense"]["bytes"])
    with open_checkpoint(folder, dense=True) as found:
        info = found.tensors[f"{MODULE}.weight"]
        assert list(found.tensors) == [info.name]
        assert (info.dtype.name, list(info.shape)) == (NAMES[case["dense"]["dtype"]], case["dense"]["shape"])
        assert found.read(info.name).tobytes() == expected
        width = info.dtype.bytes
        for start, stop in ((0, 1), (3, 50), (info.size - 5, info.size), (7, 7), (info.shape[1] - 1, info.size)):
            assert found.read(info.name, start, stop).tobytes() == expected[start * width : stop * width]


@pytest.mark.parametrize(
    ("bits", "numbers", "words"),
    [
        (4, list(range(-8, 8)), [0x76543210, 0xFEDCBA98]),
        (8, [-128, -1, 0, 127], [0xFF807F00]),
    ],
)
def test_words_worked_out_by_hand(bits: int, numbers: list[int], words: list[int]) -> None:
    given_words = np.array([words], np.uint32).view(np.int32)
    assert unpacked_rows(given_words, bits, len(numbers)).tolist() == [numbers]
    assert (packed_words(np.array([numbers]), bits) == given_words).all()


@settings(max_examples=60)
@given(
    bits=st.integers(1, 8),
    rows=st.integers(1, 37),
    groups=st.integers(1, 5),
    group=st.integers(1, 19),
    by_channel=st.booleans(),
    zero=st.booleans(),
    order=st.booleans(),
    packed=st.booleans(),
    dtype=st.sampled_from(["BF16", "F16", "F32"]),
    data=st.data(),
)
def test_any_shape(
    tmp_path_factory: pytest.TempPathFactory,
    bits: int, rows: int, groups: int, group: int, by_channel: bool, zero: bool, order: bool, packed: bool, dtype: str,
    data: st.DataObject,
) -> None:  # fmt: skip
    columns = groups * group
    parts, dense, weights = stored(
        np.random.default_rng(bits * rows + columns), rows, columns,
        bits=bits, group=0 if by_channel else group, zero=zero, packed=packed, order=order and not by_channel,
        dtype=dtype,
    )  # fmt: skip
    form = "pack-quantized" if packed else "naive-quantized"
    folder = write_quantised(
        tmp_path_factory.mktemp("q"),
        {f"{MODULE}.{leaf}": part for leaf, part in parts.items()},
        quantization_config(form, weights),
        dtype,
    )
    with open_checkpoint(folder, dense=True) as found:
        assert (found.values(f"{MODULE}.weight").reshape(dense.shape) == dense).all()
        start = data.draw(st.integers(0, dense.size))
        stop = data.draw(st.integers(start, dense.size))
        assert (found.values(f"{MODULE}.weight", start, stop) == dense.ravel()[start:stop]).all()


def test_blocks_that_do_not_divide(tmp_path: Path) -> None:
    """Rows and columns left over belong to blocks of their own."""
    rng = np.random.default_rng(0)
    codes, scale = rng.integers(-128, 128, (11, 21)), rng.random((3, 3)).astype(np.float32)
    weights = {"num_bits": 8, "type": "int", "strategy": "block", "block_structure": "4x8"}
    tensors = {f"{MODULE}.weight": codes.astype(np.int8), f"{MODULE}.weight_scale": scale}
    folder = write_quantised(tmp_path, tensors, quantization_config("naive-quantized", weights), "F32")
    expected = codes.astype(np.float32) * scale[np.arange(11)[:, None] // 4, np.arange(21) // 8]
    with open_checkpoint(folder, dense=True) as found:
        assert (found.values(f"{MODULE}.weight").reshape(11, 21) == expected).all()
        assert (found.values(f"{MODULE}.weight", 90, 180) == expected.ravel()[90:180]).all()


def test_only_the_rows_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, _, weights = stored(np.random.default_rng(0), 512, 256, bits=4, group=32, zero=True)
    tensors = {f"{MODULE}.{leaf}": part for leaf, part in parts.items()}
    folder = write_quantised(tmp_path, tensors, quantization_config("pack-quantized", weights))
    from nett.core.checkpoint.files import FileReader

    read = []
    plain = FileReader.read
    monkeypatch.setattr(
        FileReader, "read", lambda s, o, c, r: (read.append(c * np.dtype(r).itemsize), plain(s, o, c, r))[1]
    )
    with open_checkpoint(folder, dense=True) as found:
        assert sum(read) == 16  # weight_shape
        found.read(f"{MODULE}.weight", 256 * 100, 256 * 104)
    assert sum(read) - 16 <= 4 * 256 // 2 + 4 * 8 * 2 + 2 * 8 * 4


def test_groups_by_name_ignored_modules_and_what_is_not_a_weight(tmp_path: Path) -> None:
    """Two schemes, one by a pattern; a module left as it was; scales of activations and of the cache left out."""
    rng = np.random.default_rng(1)
    four, dense_four, weights_four = stored(rng, 6, 32, bits=4, group=8)
    eight, dense_eight, weights_eight = stored(rng, 6, 32, bits=8, packed=False)
    tensors = {f"a.up_proj.{k}": v for k, v in four.items()} | {f"a.down_proj.{k}": v for k, v in eight.items()}
    tensors |= {
        "lm_head.weight": np.ones((3, 2), np.float32),
        "a.down_proj.input_scale": np.ones(1, np.float32),
        "a.self_attn.k_scale": np.ones(1, np.float32),
    }
    said = quantization_config("mixed-precision", {}, config_groups={
        "g0": {"targets": ["Linear"], "weights": weights_four, "format": "pack-quantized"},
        "g1": {"targets": ["re:.*down_proj$"], "weights": weights_eight, "format": "int-quantized"},
    })  # fmt: skip
    with open_checkpoint(write_quantised(tmp_path, tensors, said), dense=True) as found:
        assert sorted(found.tensors) == ["a.down_proj.weight", "a.up_proj.weight", "lm_head.weight"]
        assert (found.values("a.up_proj.weight") == dense_four.ravel()).all()
        assert (found.values("a.down_proj.weight") == dense_eight.ravel()).all()
        assert found.skipped == ("a.down_proj.input_scale", "a.self_attn.k_scale")  # type: ignore[attr-defined]
        assert found.config() == {}
        (note,) = found.notes
        assert "quantization_config" in note and "2 scales of activations" in note and "INT4 group 8" in note
    with open_checkpoint(tmp_path) as raw:  # and without `dense`, what lies there
        assert "a.up_proj.weight_packed" in raw.tensors


def test_weights_not_yet_compressed_stay_as_they_are(tmp_path: Path) -> None:
    tensors = {f"{MODULE}.weight": np.ones((4, 8), np.float32), f"{MODULE}.weight_scale": np.ones((4, 1), np.float32)}
    weights = {"num_bits": 8, "type": "int", "strategy": "channel"}
    folder = write_quantised(tmp_path, tensors, quantization_config("dense", weights), "F32")
    with open_checkpoint(folder, dense=True) as found:
        assert list(found.tensors) == [f"{MODULE}.weight"]
        assert (found.values(f"{MODULE}.weight") == 1).all()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "sparse": (
        {"sparsity_config": {"format": "sparse-24-bitmask", "targets": []}},
        "sparse format 'sparse-24-bitmask'",
    ),
    "sparse format": ({"format": "marlin-24"}, "sparse format 'marlin-24'"),
    "rotated": ({"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}}, "were rotated before"),
    "nvfp4": ({"format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized', which nett does not read"),
    "bits": ({"weights": {"num_bits": 9}}, "packed ints of 9 bits; nett reads packed integers of 1 to 8 bits"),
    "strategy": ({"weights": {"strategy": "tensor_group"}}, "have scales by 'tensor_group'"),
    "group": ({"weights": {"group_size": 16}}, r"has the shape \[6, 4\], but INT4 group 16 of a 6 x 32 matrix needs"),
    "zero point": ({"weights": {"symmetric": False}}, "weight_zero_point is missing"),
    "targets": ({"targets": ["model.other"]}, "no group of quantization_config speaks of it"),
    "pattern": ({"targets": ["re:(a*)*"]}, "repeats too much"),
    "preset": ({"config_groups": {"W4A16": ["Linear"]}}, "is a preset's name"),
    "method gptq": ({"quant_method": "gptq"}, "GPTQ's own packing .quant_method 'gptq'"),
    "method awq": ({"quant_method": "awq"}, "AutoAWQ's own packing"),
    "method bitsandbytes": ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
    "method of old bitsandbytes": ({"quant_method": None, "load_in_8bit": True}, "bitsandbytes"),
    "method fp8": ({"quant_method": "fp8"}, "fine-grained FP8"),
    "method unknown": ({"quant_method": "zip"}, "'zip'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused_by_name(tmp_path: Path, name: str) -> None:
    change, sentence = WRONG[name]
    parts, _, weights = stored(np.random.default_rng(0), 6, 32, bits=4, group=8)
    said = quantization_config("pack-quantized", weights | change.get("weights", {}))
    said["config_groups"]["group_0"]["targets"] = change.get("targets", ["Linear"])
    if "format" in change:
        said["config_groups"]["group_0"]["format"] = change["format"]
    said |= {k: v for k, v in change.items() if k not in ("weights", "targets")}
    folder = write_quantised(tmp_path, {f"{MODULE}.{k}": v for k, v in parts.items()}, said)
    with pytest.raises(Refused, match=sentence):
        open_checkpoint(folder, dense=True)
    open_checkpoint(folder).close()  # as it lies, everything can be looked at


@pytest.mark.parametrize(
    ("leaf", "value", "sentence"),
    [
        ("weight_shape", np.array([6, 4000], np.int64), "does not hold 6 x 4000 numbers of 4 bits"),
        ("weight_shape", np.array([7, 32], np.int64), "does not hold 7 x 32"),
        ("weight_scale", None, "belongs to a format of compressed-tensors that nett does not read"),
        ("weight_packed", np.zeros((6, 4), np.int8), "is I8, but INT4 group 8 is stored as I32"),
        ("weight_g_idx", np.zeros(31, np.int32), "expected the group of each column"),
    ],
)
def test_tensors_that_contradict_the_config(tmp_path: Path, leaf: str, value: Any, sentence: str) -> None:
    parts, _, weights = stored(np.random.default_rng(0), 6, 32, bits=4, group=8)
    parts[leaf] = value
    tensors = {f"{MODULE}.{k}": v for k, v in parts.items() if v is not None}
    with pytest.raises(Refused, match=sentence):
        open_checkpoint(write_quantised(tmp_path, tensors, quantization_config("pack-quantized", weights)), dense=True)


def test_an_order_that_is_none(tmp_path: Path) -> None:
    """-1 marks an order never set; groups of unequal size cannot be."""
    parts, dense, weights = stored(np.random.default_rng(0), 6, 32, bits=4, group=8)
    for index, fine in ((np.full(32, -1), True), (np.zeros(32), False)):
        parts["weight_g_idx"] = index.astype(np.int32)
        tensors = {f"{MODULE}.{k}": v for k, v in parts.items()}
        folder = write_quantised(tmp_path / str(fine), tensors, quantization_config("pack-quantized", weights))
        with open_checkpoint(folder, dense=True) as found:
            if fine:
                assert (found.values(f"{MODULE}.weight") == dense.ravel()).all()
            else:
                with pytest.raises(Refused, match="does not put 8 columns into each group"):
                    found.values(f"{MODULE}.weight")


@pytest.mark.parametrize("leaf", ["qweight", "weight.quant_state.bitsandbytes__nf4", "SCB", "weight_packed"])
def test_packed_tensors_without_a_config(tmp_path: Path, leaf: str) -> None:
    write_tensors(tmp_path / "model.safetensors", {f"{MODULE}.{leaf}": np.zeros((2, 2), np.int32)})
    with pytest.raises(Refused, match=r"and no config[.]json that says how to read it"):
        open_checkpoint(tmp_path / "model.safetensors", dense=True)
