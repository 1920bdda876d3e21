"""Grids are found where codes give back every bit, and nowhere else; the oracle is the gguf package's dequantisation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nett.core.dtypes import DTYPES, decode, encode
from nett.core.grid import GGUF, Grid, Packed, as_gguf, detect, grids, pack, sniff, unpack
from nett.core.grid.kinds import named
from nett.core.grid.pack import sample

Array = Any
FLOATS = ("F32", "F16", "BF16")
TOPS = {"Q4_0": (-8, 7), "Q4_1": (0, 15), "Q5_0": (-16, 15), "Q5_1": (0, 31), "Q8_0": (-128, 127)}


def weights(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(count, dtype=np.float32) * np.float32(0.02)


def official(name: str, blocks: Array) -> Array:
    """float32 of the blocks of a GGUF's tensor, as the gguf package makes them."""
    with np.errstate(all="ignore"):
        return gguf.dequantize(blocks.reshape(1, -1), gguf.GGMLQuantizationType[name]).ravel()


def dequantised(name: str, count: int = 1 << 13, seed: int = 0) -> Array:
    return official(name, gguf.quantize(weights(count, seed)[None], gguf.GGMLQuantizationType[name]))


def stored(values: Array, dtype: str) -> Array:
    return encode(np.asarray(values, np.float32), DTYPES[dtype])


def same_bits(a: Array, b: Array) -> bool:
    return bool(a.dtype == b.dtype and a.tobytes() == b.tobytes())


def by_formula(packed: Packed) -> Array:
    """What a packed form stands for: float32 product, float32 sum, rounded to the type."""
    each = [np.repeat(h.astype(np.float32), packed.grid.group) for h in (packed.scales, packed.mins) if h is not None]
    values = each[0] * packed.codes.astype(np.float32)
    if packed.mins is not None:
        values = values + each[1]
    if packed.grid.zeros:
        values[packed.codes == packed.grid.low - 1] = -0.0
    return stored(values, packed.dtype.name)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", GGUF)
def test_a_dequantised_gguf_is_found_and_comes_back(name: str, dtype: str) -> None:
    raw = stored(dequantised(name), dtype)
    before = raw.copy()
    found = detect(raw, DTYPES[dtype])
    assert found is not None and found.grid == GGUF[name] and same_bits(raw, before)
    assert found.scales.dtype == np.float16 and found.scales.size == raw.size // 32
    assert found.codes.min() >= TOPS[name][0] and found.codes.max() <= TOPS[name][1]
    assert same_bits(unpack(found), raw) and same_bits(by_formula(found), raw)
    assert same_bits(stored(official(name, as_gguf(found)), dtype), raw)
    assert found.nbytes == as_gguf(found).nbytes == raw.size // 32 * gguf.GGML_QUANT_SIZES[
        gguf.GGMLQuantizationType[name]
    ][1]  # fmt: skip


@settings(max_examples=40)
@given(st.data(), st.sampled_from(sorted(GGUF)), st.sampled_from(FLOATS))
def test_whatever_a_gguf_may_hold(data: st.DataObject, name: str, dtype: str) -> None:
    """Any finite scale and minimum, any codes: what is packed is right, and float32 of usual scales is packed."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]
    blocks = data.draw(hnp.arrays(np.uint8, (3, size)))
    halves = blocks[:, : 4 if "_1" in name else 2].copy().view(np.float16)
    values = official(name, blocks)
    raw = stored(values, dtype)
    found = pack(raw, DTYPES[dtype], GGUF[name])
    if found is not None:
        assert same_bits(by_formula(found), raw) and same_bits(unpack(found), raw)
        assert same_bits(stored(official(name, as_gguf(found)), dtype), raw)
    finite = bool(np.isfinite(halves).all())
    if not finite and not np.isfinite(values).all():
        assert found is None
    if dtype == "F32" and finite and "_1" not in name:
        assert found is not None
    if dtype == "F32" and finite and "_1" in name:
        scale, least = halves[:, 0].astype(np.float64), np.abs(halves[:, 1].astype(np.float64))
        if (scale > 0).all() and (least <= 256 * scale).all():
            assert found is not None


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", GGUF)
def test_one_bit_beside_the_grid_is_refused(name: str, dtype: str) -> None:
    raw = stored(dequantised(name, 1 << 12), dtype)
    assert pack(raw, DTYPES[dtype], GGUF[name]) is not None
    bits = raw.view(f"u{raw.itemsize}")
    at = int(np.flatnonzero(np.abs(decode(raw, DTYPES[dtype])) > 0.02)[-1])
    bits[at] ^= 1
    found = pack(raw, DTYPES[dtype], GGUF[name])
    assert found is None or same_bits(by_formula(found), raw)  # the neighbour may be on another grid of that block
    if dtype == "F32":
        assert found is None


@pytest.mark.parametrize("dtype", FLOATS)
def test_ordinary_weights_lie_on_no_grid(dtype: str) -> None:
    raw = stored(weights(1 << 16), dtype)
    assert detect(raw, DTYPES[dtype]) is None and detect(raw, DTYPES[dtype], 256) is None
    assert all(pack(raw, DTYPES[dtype], g) is None for g in grids(DTYPES[dtype], raw.size))


@pytest.mark.parametrize("name", GGUF)
def test_nan_and_infinity_are_never_on_a_grid(name: str) -> None:
    for dtype in FLOATS:
        for odd in (np.nan, np.inf, -np.inf):
            values = dequantised(name, 128)
            values[77] = odd
            assert pack(stored(values, dtype), DTYPES[dtype], GGUF[name]) is None


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", GGUF)
def test_zero_and_constant_blocks(name: str, dtype: str) -> None:
    kind, grid = DTYPES[dtype], GGUF[name]
    for value in (0.0, -0.0, 0.5, -0.25):
        raw = stored(np.full(64, value, np.float32), dtype)
        found = pack(raw, kind, grid)
        assert found is not None and same_bits(by_formula(found), raw), value
        assert detect(raw, kind) is None  # one number says nothing of a grid
    both = stored(np.array([0.0, -0.0] * 16, np.float32), dtype)
    found = pack(both, kind, grid)
    assert (found is None) == grid.minimum  # codes 0 and -1 of a scale of zero
    assert found is None or same_bits(by_formula(found), both)
    mixed = stored(np.array([0.0, -0.0, 0.5, -0.5] * 8, np.float32), dtype)
    assert pack(mixed, kind, grid) is None


def test_what_is_no_whole_group_and_no_float_is_refused() -> None:
    values = dequantised("Q8_0", 128)
    assert pack(values[:127], DTYPES["F32"], GGUF["Q8_0"]) is None
    assert detect(values[:31], DTYPES["F32"]) is None and detect(values[:0], DTYPES["F32"]) is None
    assert pack(values.astype(np.float64), DTYPES["F64"], GGUF["Q8_0"]) is None
    assert detect(np.arange(64, dtype=np.int8), DTYPES["I8"]) is None
    with pytest.raises(ValueError, match="no format of GGUF"):
        as_gguf(Packed(named("int8g64"), DTYPES["F32"], np.zeros(64, np.int8), np.ones(1, np.float32), None))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale_type", FLOATS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("row", [0, 96, 512])
def test_round_to_nearest_by_row_or_group(row: int, bits: int, scale_type: str, dtype: str) -> None:
    """w = round(w / s) * s, s = max |w| / (2^(b-1) - 1), as tools leave it that go on with floats: zeros of both
    signs among them."""
    group, top = row or 64, (1 << bits - 1) - 1
    values = weights(96 * 512).reshape(-1, group)
    scale = stored((np.abs(values).max(1) / top).astype(np.float32), scale_type)
    scale = decode(scale, DTYPES[scale_type])[:, None]
    raw = stored((np.clip(np.rint(values / scale), -top - 1, top).astype(np.float32) * scale).ravel(), dtype)
    found = detect(raw, DTYPES[dtype], row)
    assert found is not None and found.grid.group >= min(group, 64) and not found.grid.minimum
    assert found.grid.bits <= bits + 1 + 32 / 64
    assert same_bits(by_formula(found), raw) and same_bits(unpack(found), raw)


@pytest.mark.parametrize("dtype", FLOATS)
def test_affine_groups(dtype: str) -> None:
    """w = s q + m in float32 over groups of 64, rounded to the type (scales and minima of the type too)."""
    values = weights(1 << 14).reshape(-1, 64)
    least = decode(stored(values.min(1), dtype), DTYPES[dtype])[:, None]
    scale = decode(stored(((values.max(1, keepdims=True) - least) / 15).ravel(), dtype), DTYPES[dtype])[:, None]
    codes = np.clip(np.rint((values - least) / scale), 0, 15).astype(np.float32)
    raw = stored((scale * codes + least).ravel(), dtype)
    found = detect(raw, DTYPES[dtype])
    assert found is not None and found.grid == named("uint4g64") and same_bits(by_formula(found), raw)


@pytest.mark.parametrize("name, heads, grid", [
    ("Q2_K", slice(80, 84), "uint2g16"), ("Q3_K", slice(108, 110), "int3g16"), ("Q4_K", slice(0, 4), "uint4g32"),
    ("Q5_K", slice(0, 4), "uint5g32"), ("Q6_K", slice(208, 210), "int6g16"),
])  # fmt: skip
def test_sub_blocks_of_k_quants_are_groups_with_float32_scales(name: str, heads: slice, grid: str) -> None:
    """Any codes and sub-scales; the scales of the scales are usual ones. Their own two-level layout is not rebuilt."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (64, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]), dtype=np.uint8)
    count = (heads.stop - heads.start) // 2
    blocks[:, heads] = rng.uniform(1e-4, 2e-3, (64, count)).astype(np.float16).view(np.uint8)
    raw = official(name, blocks)
    found = detect(raw, DTYPES["F32"])
    assert found is not None and found.grid == named(grid) and same_bits(by_formula(found), raw)


def test_a_grid_that_only_the_sample_lies_on_is_given_up() -> None:
    values = dequantised("Q4_0", 1 << 17)
    (_, before), (after, _) = sample(values.size)[:2]
    assert after - before > 64
    values[before + 32 : before + 64] = dequantised("Q8_0", 32, 5)
    assert sniff([values[a:b] for a, b in sample(values.size)], DTYPES["F32"], values.size) == GGUF["Q4_0"]
    found = detect(values, DTYPES["F32"])
    assert found is not None and found.grid == GGUF["Q8_0"] and same_bits(unpack(found), values)
    values[before + 40] = np.nan
    assert detect(values, DTYPES["F32"]) is None


@given(st.integers(0, 1 << 22), st.integers(0, 5000))
def test_samples_are_whole_groups_in_order(size: int, row: int) -> None:
    row = row if row and size % row == 0 else 0
    runs = sample(size, row)
    assert all(a < b or size == 0 for a, b in runs) and all(b <= c for (_, b), (c, _) in pairwise(runs))
    assert (
        runs[0][0] == 0
        and runs[-1][1] <= size
        and (len(runs) == 1 or all((b - a) % (row or 1024) == 0 for a, b in runs))
    )


def test_names_lead_back_to_grids() -> None:
    every = [*GGUF.values(), *(g for d in FLOATS for g in grids(DTYPES[d], 3 * 2048 * 96, 96))]
    assert all(named(str(g)) == g for g in every) and len({g.name for g in every}) == len(set(every))
    assert any(g.group == 96 for g in every) and any(isinstance(g, Grid) and g.zeros for g in every)
    with pytest.raises(ValueError):
        named("Q9_9")
