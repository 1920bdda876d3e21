"""Floats on a quantisation grid, coded as the integers, scales and minima that give back every bit of them.

A block that lies on no grid, for a NaN or an element that somebody changed, is coded as the planes of its bytes, and
says so by the first letter of its coders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nett.core.codec import coders
from nett.core.codec.planes import from_planes, to_planes
from nett.core.dtypes import DTYPES, Array, Dtype
from nett.core.errors import NettError
from nett.core.grid import Grid, Packed, pack, sniff, unpack
from nett.core.grid.kinds import named

OFF = "-"  # first of a block's letters: no grid, planes of the bytes
_FLOATS = {4: ("F32",), 2: ("BF16", "F16")}
_WHOLE = 1 << 10  # elements: a multiple of every group


def name_of(grid: Grid, dtype: Dtype) -> str:
    return f"{grid.name}:{dtype.name}"


def from_name(name: str) -> tuple[Grid, Dtype]:
    """Grid and type of a mode. ValueError or KeyError where there are none of that name."""
    grid, _, dtype = name.partition(":")
    return named(grid), DTYPES[dtype]


def found_in(sample: Array, width: int) -> str | None:
    """The name of the grid that a sample of a tensor's bytes lies on; None if there is none."""
    for name in _FLOATS.get(width, ()):
        values = sample[: sample.size // width * width].view(DTYPES[name].raw)
        whole = _WHOLE if values.size >= _WHOLE else 32
        values = values[: values.size // whole * whole]
        grid = sniff([values], DTYPES[name], values.size) if values.size else None
        if grid is not None:
            return name_of(grid, DTYPES[name])
    return None


def to_grid(raw: Array, name: str) -> list[Array] | None:
    """The planes of a block's codes, scales and minima; None where it does not lie on the grid."""
    grid, dtype = from_name(name)
    if raw.size % dtype.bytes:
        return None
    packed = pack(raw.view(dtype.raw), dtype, grid)
    if packed is None:
        return None
    heads = [packed.scales] + ([packed.mins] if packed.mins is not None else [])
    return [
        packed.codes.view(np.uint8),
        *(p for h in heads for p in to_planes(h.view(np.uint8), h.itemsize, "rotated")),
    ]


def encode(raw: Array, name: str) -> tuple[str, list[Any]]:
    """The letters and the coded planes of a block."""
    planes = to_grid(raw, name)
    off = planes is None
    if planes is None:
        width = from_name(name)[1].bytes
        planes = to_planes(raw, width, "rotated") if raw.size % width == 0 else to_planes(raw, 1, "plain")
    found = [coders.code(p) for p in planes]
    return OFF * off + "".join(c for c, _ in found), [data for _, data in found]


def decode(letters: str, coded: Sequence[Any], name: str, out: Array) -> None:
    """Fill the bytes of a block; NettError where there are not the planes that it needs."""
    grid, dtype = from_name(name)
    if letters.startswith(OFF):
        width = dtype.bytes if out.size % dtype.bytes == 0 else 1
        planes = _planes(letters[1:], coded, [out.size // width] * width)
        from_planes(planes, width, "rotated" if width > 1 else "plain", None, out)
        return
    width = 2 if grid.scale == "F16" else 4
    size = out.size // dtype.bytes
    groups = size // grid.group
    codes, *heads = _planes(letters, coded, [size] + [groups] * width * (1 + grid.minimum))
    scales = np.empty((1 + grid.minimum, groups), np.float16 if width == 2 else np.float32)
    for k, head in enumerate(scales):
        from_planes(heads[k * width : (k + 1) * width], width, "rotated", None, head.view(np.uint8))
    mins = scales[1] if grid.minimum else None
    unpack(Packed(grid, dtype, codes.view(np.uint8 if grid.minimum else np.int8), scales[0], mins), out.view(dtype.raw))


def _planes(letters: str, coded: Sequence[Any], sizes: Sequence[int]) -> list[Array]:
    if not len(letters) == len(coded) == len(sizes):
        raise NettError(f"{len(coded)} planes in place of {len(sizes)}")
    return [coders.decode(c, data, n) for c, data, n in zip(letters, coded, sizes, strict=True)]
