"""Bytes of numbers as byte planes and back: the exponents of floats lie together and can be coded.

``rotated`` planes take the sign bit out of the way first, so that the exponent of bfloat16 and float32 fills one
plane. ``difference`` planes hold, for floats of 2, 4 or 8 bytes, the distance to a base in steps of the number line:
bit patterns are mapped to integers in the order of the values they stand for, subtracted modulo 2^k, and folded so
that small distances of either sign are small numbers. All of it is integer arithmetic on bit patterns: every
input comes back, NaN payloads and negative zeros included.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit

Form = Literal["plain", "rotated", "difference", "xor", "text"]  # text: bytes as they are, for coders that match
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


# numba computes with 64 bits whatever the type, so what overflows is masked off.


@jit
def _rotate(x: Array, left: int, bits: int, out: Array) -> None:
    up, down = np.uint64(left), np.uint64(bits - left)
    for i in range(x.size):
        v = np.uint64(x[i])
        out[i] = (v << up) | (v >> down)


@jit
def _difference(x: Array, base: Array, bits: int, out: Array) -> None:
    """In the order of values: negative patterns inverted, the others above them."""
    one, top = np.uint64(1), np.uint64(bits - 1)
    sign = one << top
    mask = sign | (sign - one)
    for i in range(x.size):
        a, b = np.uint64(x[i]), np.uint64(base[i])
        a ^= mask if a & sign else sign
        b ^= mask if b & sign else sign
        d = (a - b) & mask
        out[i] = (d << one) ^ (mask if d & sign else np.uint64(0))


@jit
def _undo_difference(z: Array, base: Array, bits: int, out: Array) -> None:
    one, top = np.uint64(1), np.uint64(bits - 1)
    sign = one << top
    mask = sign | (sign - one)
    for i in range(z.size):
        v, b = np.uint64(z[i]), np.uint64(base[i])
        d = (v >> one) ^ (mask if v & one else np.uint64(0))
        b ^= mask if b & sign else sign
        a = (b + d) & mask
        out[i] = a ^ (sign if a & sign else mask)


@jit
def _split2(x: Array, low: Array, high: Array) -> None:
    for i in range(x.size):
        low[i] = np.uint8(x[i])
        high[i] = np.uint8(x[i] >> np.uint16(8))


@jit
def _join2(low: Array, high: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] = np.uint16(low[i]) | (np.uint16(high[i]) << np.uint16(8))


@jit
def _split4(x: Array, a: Array, b: Array, c: Array, d: Array) -> None:
    for i in range(x.size):
        v = x[i]
        a[i] = np.uint8(v)
        b[i] = np.uint8(v >> np.uint32(8))
        c[i] = np.uint8(v >> np.uint32(16))
        d[i] = np.uint8(v >> np.uint32(24))


@jit
def _join4(a: Array, b: Array, c: Array, d: Array, out: Array) -> None:
    for i in range(out.size):
        high = (np.uint32(c[i]) << np.uint32(16)) | (np.uint32(d[i]) << np.uint32(24))
        out[i] = np.uint32(a[i]) | (np.uint32(b[i]) << np.uint32(8)) | high


def to_planes(raw: Array, width: int, form: Form, base: Array | None = None) -> Array:
    """``raw`` bytes (a multiple of ``width``, little endian) as uint8 planes (width, count), lowest byte first.

    ``difference`` and ``xor`` need the ``base`` bytes, as many as ``raw``.
    """
    x = raw.view(UNSIGNED[width])
    if form == "rotated":
        out = np.empty_like(x)
        _rotate(x, 1, 8 * width, out)
        x = out
    elif form == "difference":
        assert base is not None
        out = np.empty_like(x)
        _difference(x, base.view(UNSIGNED[width]), 8 * width, out)
        x = out
    elif form == "xor":
        assert base is not None
        x = x ^ base.view(UNSIGNED[width])
    planes = np.empty((width, x.size), np.uint8)
    if width == 2:
        _split2(x, *planes)
    elif width == 4:
        _split4(x, *planes)
    else:
        planes[:] = x.view(np.uint8).reshape(-1, width).T
    return planes


def from_planes(planes: Array, width: int, form: Form, base: Array | None, out: Array) -> None:
    """The inverse of :func:`to_planes`: fills the bytes ``out``."""
    numbers = out.view(UNSIGNED[width])
    if width == 2:
        _join2(planes[0], planes[1], numbers)
    elif width == 4:
        _join4(planes[0], planes[1], planes[2], planes[3], numbers)
    else:
        out.reshape(-1, width)[:] = planes.T
    if form == "rotated":
        _rotate(numbers, 8 * width - 1, 8 * width, numbers)
    elif form == "difference":
        assert base is not None
        _undo_difference(numbers, base.view(UNSIGNED[width]), 8 * width, numbers)
    elif form == "xor":
        assert base is not None
        numbers ^= base.view(UNSIGNED[width])
