"""Element types by their safetensors names, and their exact conversion from and to float32/float64.

NumPy knows no bfloat16 and no float8, so those travel as raw integers. Every conversion rounds to nearest,
ties to even, as IEEE 754 and PyTorch do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from nett.core.errors import UsageError, did_you_mean
from nett.core.jit import jit

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Dtype:
    """One element type. ``raw`` is the NumPy type that carries its bits."""

    name: str
    bits: int
    raw: str
    kind: str  # "float", "int", "bool" or "packed"
    alias: str = ""

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        return self.kind == "float"


DTYPES = {
    d.name: d
    for d in (
        Dtype("F64", 64, "<f8", "float", "float64"),
        Dtype("F32", 32, "<f4", "float", "float32"),
        Dtype("F16", 16, "<f2", "float", "float16"),
        Dtype("BF16", 16, "<u2", "float", "bfloat16"),
        Dtype("F8_E4M3", 8, "u1", "float", "float8_e4m3fn"),
        Dtype("F8_E5M2", 8, "u1", "float", "float8_e5m2"),
        Dtype("I64", 64, "<i8", "int", "int64"),
        Dtype("I32", 32, "<i4", "int", "int32"),
        Dtype("I16", 16, "<i2", "int", "int16"),
        Dtype("I8", 8, "i1", "int", "int8"),
        Dtype("U64", 64, "<u8", "int", "uint64"),
        Dtype("U32", 32, "<u4", "int", "uint32"),
        Dtype("U16", 16, "<u2", "int", "uint16"),
        Dtype("U8", 8, "u1", "int", "uint8"),
        Dtype("BOOL", 8, "?", "bool", "bool"),
    )
}
_BY_ALIAS = {d.alias: d for d in DTYPES.values()} | {
    "fp32": DTYPES["F32"], "fp16": DTYPES["F16"], "bf16": DTYPES["BF16"],
}  # fmt: skip


def dtype_named(name: str) -> Dtype:
    """Any spelling in use (``BF16``, ``bfloat16``, ``torch.bfloat16``, ``bf16``)."""
    bare = name.removeprefix("torch.")
    found = DTYPES.get(bare.upper()) or _BY_ALIAS.get(bare.lower())
    if found is None:
        raise UsageError(f"unknown dtype {name!r}.{did_you_mean(bare, _BY_ALIAS)}")
    return found


@jit
def _f32_to_bf16(bits: Array, out: Array) -> None:
    for i in range(bits.size):
        b = bits[i]
        if (b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):  # NaN: keep it one, whatever the payload
            out[i] = np.uint16((b >> np.uint32(16)) | np.uint32(0x40))
        else:
            out[i] = np.uint16((b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@cache
def _float8_table(name: str) -> Array:
    """All 256 values of a float8 type as float32 (OCP 8-bit floating point, table 1)."""
    mantissa, bias = (3, 7) if name == "F8_E4M3" else (2, 15)
    code = np.arange(256)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent, fraction = (code & 0x7F) >> mantissa, code & ((1 << mantissa) - 1)
    normal = (1 + fraction / 2**mantissa) * 2.0 ** (exponent - bias)
    value = np.where(exponent == 0, fraction / 2**mantissa * 2.0 ** (1 - bias), normal)
    if name == "F8_E4M3":
        value[(code & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == 31
        value[top] = np.where(fraction[top] == 0, np.inf, np.nan)
    return np.asarray(sign * value, dtype=np.float32)


def _to_float8(values: Array, name: str) -> Array:
    table = _float8_table(name)
    finite = np.flatnonzero(np.isfinite(table) & ~np.signbit(table))
    grid = table[finite].astype(np.float64)
    size = np.abs(values.astype(np.float64))
    upper = np.clip(np.searchsorted(grid, size), 1, len(grid) - 1)
    low, high = grid[upper - 1], grid[upper]
    middle = (low + high) / 2
    take_high = (size > middle) | ((size == middle) & (finite[upper] % 2 == 0))
    code = np.where(take_high, finite[upper], finite[upper - 1])
    step = grid[-1] - grid[-2]
    overflow = (size >= grid[-1] + step / 2) | np.isinf(size)
    code = np.where(overflow, 0x7F if name == "F8_E4M3" else 0x7C, code)
    code = np.where(np.isnan(values), 0x7F, code)
    return (code | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)


def decode(raw: Array, dtype: Dtype) -> Array:
    """Raw elements (1-D, of ``dtype.raw``) as float32, or float64 for F64; integers and booleans unchanged."""
    if dtype.name == "BF16":
        out = raw.astype(np.uint32)
        out <<= np.uint32(16)
        return out.view(np.float32)
    if dtype.name == "F16":
        return raw.astype(np.float32)
    if dtype.name.startswith("F8"):
        return np.asarray(_float8_table(dtype.name)[raw])
    return raw


def encode(values: Array, dtype: Dtype) -> Array:
    """Floats (1-D) as raw elements of ``dtype``, rounded to nearest even; inverse of :func:`decode`."""
    if dtype.name == "BF16":
        single = np.ascontiguousarray(values, dtype=np.float32)
        out = np.empty(single.size, np.uint16)
        _f32_to_bf16(single.view(np.uint32), out)
        return out
    if dtype.name.startswith("F8"):
        return _to_float8(values, dtype.name)
    if dtype.kind == "int" and np.issubdtype(values.dtype, np.floating):
        values = np.rint(values)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=np.dtype(dtype.raw))
