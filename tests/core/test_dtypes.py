"""Element types: every conversion against NumPy, an independent reading of the formats, and torch where it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nett.core.dtypes import DTYPES, decode, dtype_named, encode
from nett.core.errors import UsageError
from support.tensors import Array, from_bits, to_bits

SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-45, -1e-45, 1e-40, 3.4e38, 65504, 65519.99, 65520, 65536,
     448, 464, 464.1, 480, 57344, 61439, 61440, 2**-24, 2**-25, 2**-9, 2**-10, 2**-10 * 1.0001, 2**-16, 2**-17, 1 + 2**-8, 1 + 3 * 2**-8],
    np.float32,
)  # fmt: skip
floats = hnp.arrays(np.float32, 64, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def same(a: Array, b: Array) -> bool:
    """Equal, NaN for NaN, and zeros of the same sign."""
    return np.array_equal(a, b, equal_nan=True) and np.array_equal(
        np.signbit(a)[~np.isnan(a)], np.signbit(b)[~np.isnan(b)]
    )


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("BF16", "BF16"), ("bfloat16", "BF16"), ("torch.bfloat16", "BF16"), ("bf16", "BF16"), ("fp16", "F16"), ("half", None),
     ("float32", "F32"), ("F32", "F32"), ("fp32", "F32"), ("f8_e4m3", "F8_E4M3"), ("float8_e4m3fn", "F8_E4M3"), ("int64", "I64"), ("bool", "BOOL"), ("torch.", None), ("", None)],
)  # fmt: skip
def test_spellings(spelling: str, name: str | None) -> None:
    if name is None:
        with pytest.raises(UsageError, match="unknown dtype"):
            dtype_named(spelling)
    else:
        assert dtype_named(spelling).name == name


def test_misspelt_names_are_guessed() -> None:
    with pytest.raises(UsageError, match="Did you mean 'bfloat16'"):
        dtype_named("bfloat61")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda d: d.name)
def test_sizes_are_those_of_the_raw_type(dtype) -> None:  # type: ignore[no-untyped-def]
    assert np.dtype(dtype.raw).itemsize == dtype.bytes == dtype.bits // 8
    assert dtype_named(dtype.alias) is dtype


def test_all_bfloat16_values_come_back() -> None:
    raw = np.arange(1 << 16, dtype=np.uint16)
    values = decode(raw, DTYPES["BF16"])
    assert same(values, (raw.astype(np.uint32) << 16).view(np.float32))
    back = encode(values, DTYPES["BF16"])
    nan = np.isnan(values)
    assert np.array_equal(back[~nan], raw[~nan]) and np.all(np.isnan(decode(back, DTYPES["BF16"])[nan]))


def test_all_float16_values_come_back() -> None:
    raw = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = decode(raw, DTYPES["F16"])
    back = encode(values, DTYPES["F16"])
    assert same(back, raw) and values.dtype == np.float32


@given(floats)
def test_bfloat16_rounds_to_nearest_even(values: Array) -> None:
    """Against a rounding written with the neighbours themselves, not with bit tricks."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = decode(encode(values, DTYPES["BF16"]), DTYPES["BF16"]).astype(np.float64)
        down = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
        up = ((values.view(np.uint32) & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32).astype(np.float64)
    exact = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        below, above = np.abs(exact - down), np.abs(up - exact)
    even = (values.view(np.uint32) >> 16) & 1 == 0
    top = np.isinf(up)  # the neighbour above the largest counts as the power of two that it would be
    above = np.where(top, np.abs(np.sign(exact) * 2.0**128 - exact), above)
    expected = np.where((below < above) | ((below == above) & even), down, up)
    assert same(found.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("name", ["BF16", "F16", "F8_E4M3", "F8_E5M2"])
def test_torch_agrees(name: str) -> None:
    """On special values and on a million random bit patterns."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    random = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    moderate = (rng.normal(size=200_000) * 2.0 ** rng.integers(-28, 18, 200_000)).astype(np.float32)
    values = np.concatenate([SPECIAL, -SPECIAL, random, moderate])
    kind = getattr(torch, DTYPES[name].alias)
    with np.errstate(invalid="ignore"):
        theirs = torch.from_numpy(values).to(kind)
        ours = decode(encode(values, DTYPES[name]), DTYPES[name])
    found = theirs.to(torch.float32).numpy()
    if name == "F8_E4M3":
        # It has no infinity. What is too large becomes NaN here, as the format's paper has it, so that it is found;
        # torch does the same or takes the largest value, depending on its version.
        large = np.abs(values) >= 464
        assert np.all(np.isnan(ours[large | np.isnan(values)]) | (np.abs(values) == 464)[large | np.isnan(values)])
        ours, found = ours[~large], found[~large]
    assert same(ours, found)


@pytest.mark.parametrize(("name", "largest", "smallest"), [("F8_E4M3", 448.0, 2.0**-9), ("F8_E5M2", 57344.0, 2.0**-16)])
def test_float8_tables(name: str, largest: float, smallest: float) -> None:
    """The ends of the ranges as the OCP paper's table 1 gives them; all finite codes come back."""
    codes = np.arange(256, dtype=np.uint8)
    values = decode(codes, DTYPES[name])
    finite = np.isfinite(values)
    assert values[finite].max() == largest and values[values > 0].min() == smallest
    assert np.array_equal(encode(values[finite], DTYPES[name]), codes[finite])
    assert np.count_nonzero(np.isnan(values)) == (2 if name == "F8_E4M3" else 6)


def test_float64_stays_and_integers_are_rounded() -> None:
    values = np.array([0.1, 1e300, -7.5])
    assert decode(values, DTYPES["F64"]) is values
    assert np.array_equal(encode(values, DTYPES["F64"]), values)
    assert encode(np.array([0.5, 1.5, -2.4], np.float32), DTYPES["I32"]).tolist() == [0, 2, -2]
    assert decode(np.array([True, False]), DTYPES["BOOL"]).dtype == np.bool_
    big = np.array([1 << 62, -(1 << 62) + 1])
    assert np.array_equal(encode(big, DTYPES["I64"]), big)


@pytest.mark.parametrize("name", ["BF16", "F16", "F32", "F64"])
def test_the_tests_own_writer_agrees(name: str) -> None:
    values = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    raw = encode(values, DTYPES[name])
    assert raw.tobytes() == to_bits(values, name)
    assert np.array_equal(decode(raw, DTYPES[name]), from_bits(raw.tobytes(), name, (1000,)))


def test_strided_arrays() -> None:
    values = np.arange(40, dtype=np.float32)
    for name in ("BF16", "F16", "F32", "F8_E5M2"):
        assert np.array_equal(encode(values[::2], DTYPES[name]), encode(values[::2].copy(), DTYPES[name]))
