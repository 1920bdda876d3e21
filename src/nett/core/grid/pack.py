"""From numbers to the packed form of their grid and back, in any of the float types that weights have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import final

import numpy as np

from nett.core.dtypes import Array, Dtype, decode, encode
from nett.core.grid.fit import STEPS, fit
from nett.core.grid.kinds import GGUF, WIDEST, Grid, grids
from nett.core.jit import jit

SAMPLED = 16  # runs of elements that the first test looks at
RUN = 1 << 11  # elements of a run; a multiple of every group but a row's
_BLOCK = 1 << 18  # elements packed at once
_TILE = 1 << 12  # elements unpacked at once


@final
@dataclass(frozen=True)
class Packed:
    """Codes (int8, or uint8 where there is a minimum), one an element; scales and minima (or None), one a group."""

    grid: Grid
    dtype: Dtype
    codes: Array
    scales: Array
    mins: Array | None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form."""
        return -(-self.codes.size * self.grid.width // 8) + (
            self.scales.nbytes + (self.mins.nbytes if self.mins is not None else 0)
        )


def pack(raw: Array, dtype: Dtype, grid: Grid) -> Packed | None:
    """The packed form of all elements (1-D, of ``dtype.raw``), proved bit by bit; None where they do not lie on the
    grid. NaN, Inf and an incomplete group never do."""
    packed, _ = _pack(raw, dtype, grid)
    return packed


def _pack(raw: Array, dtype: Dtype, grid: Grid) -> tuple[Packed | None, int]:
    """As :func:`pack`, with the first group that does not fit."""
    if dtype.name not in STEPS or raw.size % grid.group:
        return None, 0
    kind = np.uint8 if grid.minimum else np.int8
    codes = np.empty(raw.size, kind)
    scales = np.empty(raw.size // grid.group, np.float32)
    mins = np.empty_like(scales)
    block = max(1, _BLOCK // grid.group) * grid.group
    scratch = np.empty(min(block, raw.size), np.int16)
    half = grid.scale == "F16"
    for at in range(0, raw.size, block):
        piece = raw[at : at + block]
        values = np.ascontiguousarray(decode(piece, dtype))
        first, held = at // grid.group, scratch[: piece.size]
        own = slice(first, first + piece.size // grid.group)
        failed = fit(
            values, values.view(np.uint32), grid.group, grid.low, grid.high, grid.minimum, half, grid.zeros,
            STEPS[dtype.name], held, scales[own], mins[own],
        )  # fmt: skip
        if failed >= 0:
            return None, first + int(failed)
        codes[at : at + block] = held
    if half:
        scales, mins = scales.astype(np.float16), mins.astype(np.float16)
    packed = Packed(grid, dtype, codes, scales, mins if grid.minimum else None)
    back = unpack(packed)
    unsigned = f"u{raw.itemsize}"
    different = np.flatnonzero(back.view(unsigned) != raw.view(unsigned))
    return (packed, -1) if not different.size else (None, int(different[0]) // grid.group)


def unpack(packed: Packed, out: Array | None = None) -> Array:
    """The elements, of ``dtype.raw``: the inverse of :func:`pack`. ``out``: an array of that type to fill."""
    bfloat = packed.dtype.name == "BF16"
    if out is None:
        out = np.empty(packed.codes.size, packed.dtype.raw)
    scales = _wide(packed.scales)
    values = out if packed.dtype.bytes == 4 or bfloat else np.empty(out.size, np.float32)
    codes, made = (x.reshape(scales.size, packed.grid.group) for x in (packed.codes, values))
    if packed.mins is not None:
        (_affine_bfloat if bfloat else _affine)(codes, scales, _wide(packed.mins), made)
    else:
        (_plain_bfloat if bfloat else _plain)(codes, scales, made)
        if packed.grid.zeros:
            values[packed.codes == packed.grid.low - 1] = 0x8000 if bfloat else -0.0
    if values is not out:
        out[:] = encode(values, packed.dtype)
    return out


@cache
def _halves() -> Array:
    """All float16 as float32."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _wide(scales: Array) -> Array:
    """As float32; looked up, which is several times as fast as NumPy's conversion."""
    return _halves().take(scales.view(np.uint16), mode="clip") if scales.itemsize == 2 else scales


@jit
def _plain(codes: Array, scales: Array, out: Array) -> None:
    """Rows are groups; the compiler makes vector code of rows, which it does not of a range of a long array."""
    for g in range(codes.shape[0]):
        scale = scales[g]
        for i in range(codes.shape[1]):
            out[g, i] = scale * np.float32(codes[g, i])


@jit
def _affine(codes: Array, scales: Array, mins: Array, out: Array) -> None:
    for g in range(codes.shape[0]):
        scale, least = scales[g], mins[g]
        for i in range(codes.shape[1]):
            out[g, i] = np.float32(scale * np.float32(codes[g, i])) + least


@jit
def _to_bfloat(made: Array, out: Array) -> None:
    """float32 as uint32, rounded to nearest even; NaN and infinity lie on no grid."""
    for i in range(out.size):
        b = made[i]
        out[i] = np.uint16((b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@jit
def _plain_bfloat(codes: Array, scales: Array, out: Array) -> None:
    """Some groups at a time, whose float32 numbers never leave the nearest cache."""
    group = codes.shape[1]
    rows = max(1, _TILE // group)
    made = np.empty((rows, group), np.float32)
    for at in range(0, codes.shape[0], rows):
        to = out[at : at + rows].reshape(-1)
        _plain(codes[at : at + rows], scales[at : at + rows], made)
        _to_bfloat(made.reshape(-1).view(np.uint32), to)


@jit
def _affine_bfloat(codes: Array, scales: Array, mins: Array, out: Array) -> None:
    group = codes.shape[1]
    rows = max(1, _TILE // group)
    made = np.empty((rows, group), np.float32)
    for at in range(0, codes.shape[0], rows):
        to = out[at : at + rows].reshape(-1)
        _affine(codes[at : at + rows], scales[at : at + rows], mins[at : at + rows], made)
        _to_bfloat(made.reshape(-1).view(np.uint32), to)


def sample(size: int, row: int = 0) -> list[tuple[int, int]]:
    """(start, stop) of the runs of elements that :func:`sniff` wants of a tensor: whole groups, spread over it."""
    run = row if row > RUN else RUN // row * row if row and RUN % row else RUN
    if size <= SAMPLED * run:
        return [(0, size)]
    runs = size // run
    return [(at * run, at * run + run) for at in sorted({k * (runs - 1) // (SAMPLED - 1) for k in range(SAMPLED)})]


def hopeless(raw: Array, dtype: Dtype) -> bool:
    """Whether no grid can hold these elements: told by the first of them, in well under a millisecond."""
    first = raw[: RUN // 2]
    fitting = [g for g in WIDEST if first.size >= g.group]
    return all(pack(first[: first.size // g.group * g.group], dtype, g) is None for g in fitting)


def sniff(pieces: list[Array], dtype: Dtype, size: int, row: int = 0) -> Grid | None:
    """The grid with the fewest bits that all the sampled runs lie on; None if none, or if they say nothing: every
    number the same."""
    if dtype.name not in STEPS or not pieces:
        return None
    if all(p.size == 0 or bool((p == p[0]).all()) for p in pieces):
        return None
    if any(hopeless(p, dtype) for p in pieces if p.size):
        return None
    for grid in grids(dtype, size, row):
        if all(p.size % grid.group == 0 and pack(p, dtype, grid) is not None for p in pieces):
            return grid
    return None


def detect(raw: Array, dtype: Dtype, row: int = 0) -> Packed | None:
    """The packed form with the fewest bits that gives back every bit of the elements; None if there is none.

    A few runs are looked at first. Where a grid fits them and not the rest, the run that it failed at is looked at
    as well, and the next is tried.
    """
    pieces = [raw[a:b] for a, b in sample(raw.size, row)]
    while (grid := sniff(pieces, dtype, raw.size, row)) is not None:
        packed, failed = _pack(raw, dtype, grid)
        if packed is not None:
            return packed
        wide = max(grid.group, RUN, row)
        at = failed * grid.group // wide * wide
        pieces.append(raw[at : at + wide])
    return None


def as_gguf(packed: Packed) -> Array:
    """The blocks of a GGUF's tensor (bytes, (blocks, bytes of a block)), as llama.cpp lays them out.

    ValueError for a grid that is none of its formats.
    """
    name, low = packed.grid.name, packed.grid.low
    if name not in GGUF:
        raise ValueError(f"{name} is no format of GGUF")
    heads = [packed.scales] + ([packed.mins] if packed.mins is not None else [])
    parts = [h.astype("<f2").view(np.uint8).reshape(-1, 2) for h in heads]
    codes = packed.codes.reshape(-1, 32)
    if name == "Q8_0":
        return np.hstack([*parts, codes.view(np.uint8)])
    unsigned = (codes.astype(np.int16) - low).astype(np.uint8)
    if name.startswith("Q5"):
        parts.append(np.packbits(unsigned >> 4, axis=1, bitorder="little"))
    nibbles = unsigned & 15
    return np.hstack([*parts, nibbles[:, :16] | nibbles[:, 16:] << 4])
