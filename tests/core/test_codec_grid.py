"""Blocks on a quantisation grid are coded as codes and scales; every input comes back, on the grid or off it."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nett.core.codec import BLOCK, Coded, Mode, choose_mode, decode_block, encode_block, estimated_bits
from nett.core.codec.grid import OFF
from nett.core.dtypes import DTYPES, encode
from nett.core.errors import NettError

Array = Any
NAMES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
FLOATS = ("F32", "F16", "BF16")


def on_grid(name: str, count: int, dtype: str = "F32", seed: int = 0) -> Array:
    """Bytes of a dequantised GGUF, rounded to a type."""
    values = np.random.default_rng(seed).standard_normal((1, count), dtype=np.float32) * np.float32(0.02)
    kind = gguf.GGMLQuantizationType[name]
    found = gguf.dequantize(gguf.quantize(values, kind), kind).ravel().astype(np.float32)
    return encode(found, DTYPES[dtype]).view(np.uint8)


def there_and_back(raw: Array, mode: Mode) -> Coded:
    coded = encode_block(raw, mode)
    out = np.empty_like(raw)
    decode_block(coded, mode, out)
    assert out.tobytes() == raw.tobytes()
    return coded


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NAMES)
def test_a_dequantised_tensor_takes_no_more_than_it_did(name: str, dtype: str) -> None:
    """Chosen from a sample, and smaller than the GGUF's own blocks, whose integers are not coded."""
    size = DTYPES[dtype].bytes
    raw = on_grid(name, 1 << 17, dtype)
    mode, bits = choose_mode(raw[: 1 << 16], size)
    if mode.grid:
        assert mode == Mode(size, "grid", f"{name}:{dtype}") and Mode.of(str(mode)) == mode
    coded = there_and_back(raw, mode)
    block, packed = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert mode.grid and not coded.coders.startswith(OFF)
    assert coded.nbytes < raw.size // size // block * packed
    assert coded.nbytes <= 1.03 * raw.size * bits / 8 + 2000
    assert coded.nbytes < 0.8 * encode_block(raw, Mode(size, "rotated")).nbytes


def test_ordinary_numbers_are_offered_no_grid() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1 << 15, dtype=np.float32) * np.float32(0.02)
    for dtype in FLOATS:
        mode, _ = choose_mode(encode(values, DTYPES[dtype]).view(np.uint8), DTYPES[dtype].bytes)
        assert mode == Mode(DTYPES[dtype].bytes, "rotated")


@given(st.data(), st.sampled_from(NAMES), st.sampled_from(FLOATS))
def test_whatever_is_changed_comes_back(data: st.DataObject, name: str, dtype: str) -> None:
    """NaN payloads, infinities, signed zeros, any bits, blocks of any size: off the grid they are planes of bytes."""
    raw = on_grid(name, 256, dtype).copy()
    bits = raw.view(f"u{DTYPES[dtype].bytes}")
    for at in data.draw(st.lists(st.integers(0, 255), max_size=3)):
        bits[at] = data.draw(st.integers(0, 2 ** (8 * bits.itemsize) - 1))
    cut = raw[: data.draw(st.integers(0, raw.size))]
    there_and_back(raw, Mode(bits.itemsize, "grid", f"{name}:{dtype}"))
    there_and_back(cut, Mode(bits.itemsize, "grid", f"{name}:{dtype}"))


@given(st.binary(max_size=400), st.sampled_from(["Q4_1:F32:4", "Q8_0:BF16:2", "int4g64z:F16:2", "uint8g64:F32:4"]))
def test_any_bytes_come_back(blob: bytes, mode: str) -> None:
    there_and_back(np.frombuffer(blob, np.uint8).copy(), Mode.of(f"grid:{mode}"))


def test_one_nan_costs_its_block_alone() -> None:
    raw = on_grid("Q4_0", BLOCK // 2)
    raw.view(np.uint32)[100] = 0x7FC12345
    mode = Mode(4, "grid", "Q4_0:F32")
    first, second = (there_and_back(raw[at : at + BLOCK], mode) for at in (0, BLOCK))
    assert first.coders.startswith(OFF) and not second.coders.startswith(OFF)
    assert first.nbytes == encode_block(raw[:BLOCK], Mode(4, "rotated")).nbytes > 2 * second.nbytes


def test_no_sample_is_too_short_or_odd() -> None:
    raw = on_grid("Q8_0", 4096)
    for size in (0, 4, 100, 128, 132, 4096, 4100):
        mode, bits = choose_mode(raw[:size], 4)
        assert 0 <= bits <= 8 and (estimated_bits(raw[:size], Mode(4, "grid", "Q8_0:F32")) >= 0)
        there_and_back(raw[:size], mode)


def test_names_that_are_none_are_refused() -> None:
    for text in ("grid:Q9_9:F32:4", "grid:Q4_0:F99:4", "grid:Q4_0", "grid:int4g:F32:4"):
        with pytest.raises((ValueError, KeyError)):
            Mode.of(text)


def test_flipped_bits_and_missing_planes_are_noticed() -> None:
    raw, mode = on_grid("Q5_1", 4096, "BF16"), Mode(2, "grid", "Q5_1:BF16")
    coded = encode_block(raw, mode)
    rng = np.random.default_rng(0)
    for _ in range(100):
        planes = [bytearray(p) for p in coded.planes]
        plane = planes[rng.integers(len(planes))]
        plane[rng.integers(len(plane))] ^= 1 << int(rng.integers(8))
        out = np.empty_like(raw)
        try:
            decode_block(Coded(coded.coders, planes, coded.checksum), mode, out)
        except NettError:
            continue
        assert (out == raw).all()
    for wrong in (Coded(coded.coders[:-1], coded.planes[:-1], 0), Coded(OFF + coded.coders, coded.planes, 0)):
        with pytest.raises(NettError, match="planes in place of"):
            decode_block(wrong, mode, np.empty_like(raw))
    with pytest.raises(NettError, match="in place of"):
        decode_block(coded, mode, np.empty(raw.size + 64, np.uint8))
