"""Loops over elements: between numbers of 2 or 4 bytes and their byte planes, every step fused into one pass.

Branch-free and in at most 32 bits, so that the compiler turns them into vector code: four to forty GB/s a core,
against one and a half with branches or in 64 bits. What overflows is cut off by the type that is stored. Differences
take and give signed numbers, and cut every step to their width: that is three times as many at once.
"""

from __future__ import annotations

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit


@jit
def split2(x: Array, low: Array, high: Array) -> None:
    for i in range(x.size):
        low[i] = np.uint8(x[i])
        high[i] = np.uint8(x[i] >> np.uint16(8))


@jit
def join2(low: Array, high: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] = np.uint16(low[i]) | (np.uint16(high[i]) << np.uint16(8))


@jit
def split_rotated2(x: Array, low: Array, high: Array) -> None:
    for i in range(x.size):
        v = np.uint32(x[i])
        low[i] = np.uint8((v << np.uint32(1)) | (v >> np.uint32(15)))
        high[i] = np.uint8(v >> np.uint32(7))


@jit
def join_rotated2(low: Array, high: Array, out: Array) -> None:
    for i in range(out.size):
        v = np.uint32(low[i]) | (np.uint32(high[i]) << np.uint32(8))
        out[i] = np.uint16((v >> np.uint32(1)) | (v << np.uint32(15)))


@jit
def split_difference2(x: Array, base: Array, low: Array, high: Array) -> None:
    top, rest = np.int16(15), np.int16(0x7FFF)
    for i in range(x.size):
        a, b = x[i], base[i]
        a = np.int16(a ^ np.int16((a >> top) & rest))
        b = np.int16(b ^ np.int16((b >> top) & rest))
        d = np.int16(a - b)
        z = np.int16(np.int16(d << np.int16(1)) ^ np.int16(d >> top))
        low[i] = np.uint8(z)
        high[i] = np.uint8(np.int16(z >> np.int16(8)))


@jit
def join_difference2(low: Array, high: Array, base: Array, out: Array) -> None:
    one, top, rest = np.int16(1), np.int16(15), np.int16(0x7FFF)
    for i in range(out.size):
        z = np.int16(np.int16(low[i]) | np.int16(np.int16(high[i]) << np.int16(8)))
        b = np.int16(base[i] ^ np.int16((base[i] >> top) & rest))
        a = np.int16(b + np.int16(np.int16(np.int16(z >> one) & rest) ^ np.int16(-(z & one))))
        out[i] = np.int16(a ^ np.int16((a >> top) & rest))


@jit
def split4(x: Array, p: Array, q: Array, r: Array, s: Array) -> None:
    for i in range(x.size):
        v = x[i]
        p[i] = np.uint8(v)
        q[i] = np.uint8(v >> np.uint32(8))
        r[i] = np.uint8(v >> np.uint32(16))
        s[i] = np.uint8(v >> np.uint32(24))


@jit
def join4(p: Array, q: Array, r: Array, s: Array, out: Array) -> None:
    for i in range(out.size):
        high = (np.uint32(r[i]) << np.uint32(16)) | (np.uint32(s[i]) << np.uint32(24))
        out[i] = np.uint32(p[i]) | (np.uint32(q[i]) << np.uint32(8)) | high


@jit
def split_rotated4(x: Array, p: Array, q: Array, r: Array, s: Array) -> None:
    for i in range(x.size):
        v = np.uint32((x[i] << np.uint32(1)) | (x[i] >> np.uint32(31)))
        p[i] = np.uint8(v)
        q[i] = np.uint8(v >> np.uint32(8))
        r[i] = np.uint8(v >> np.uint32(16))
        s[i] = np.uint8(v >> np.uint32(24))


@jit
def join_rotated4(p: Array, q: Array, r: Array, s: Array, out: Array) -> None:
    for i in range(out.size):
        high = (np.uint32(r[i]) << np.uint32(16)) | (np.uint32(s[i]) << np.uint32(24))
        v = np.uint32(p[i]) | (np.uint32(q[i]) << np.uint32(8)) | high
        out[i] = np.uint32((v >> np.uint32(1)) | (v << np.uint32(31)))


@jit
def split_difference4(x: Array, base: Array, p: Array, q: Array, r: Array, s: Array) -> None:
    top, rest = np.int32(31), np.int32(0x7FFFFFFF)
    for i in range(x.size):
        a, b = x[i], base[i]
        a = np.int32(a ^ np.int32((a >> top) & rest))
        b = np.int32(b ^ np.int32((b >> top) & rest))
        d = np.int32(a - b)
        z = np.int32(np.int32(d << np.int32(1)) ^ np.int32(d >> top))
        p[i] = np.uint8(z)
        q[i] = np.uint8(np.int32(z >> np.int32(8)))
        r[i] = np.uint8(np.int32(z >> np.int32(16)))
        s[i] = np.uint8(np.int32(z >> np.int32(24)))


@jit
def join_difference4(p: Array, q: Array, r: Array, s: Array, base: Array, out: Array) -> None:
    one, top, rest = np.int32(1), np.int32(31), np.int32(0x7FFFFFFF)
    for i in range(out.size):
        low = np.int32(np.int32(p[i]) | np.int32(np.int32(q[i]) << np.int32(8)))
        high = np.int32(np.int32(np.int32(r[i]) << np.int32(16)) | np.int32(np.int32(s[i]) << np.int32(24)))
        z = np.int32(low | high)
        b = np.int32(base[i] ^ np.int32((base[i] >> top) & rest))
        a = np.int32(b + np.int32(np.int32(np.int32(z >> one) & rest) ^ np.int32(-(z & one))))
        out[i] = np.int32(a ^ np.int32((a >> top) & rest))


@jit
def rotate(x: Array, left: int, bits: int, out: Array) -> None:
    """Of any width; as the two below."""
    up, down = np.uint64(left), np.uint64(bits - left)
    for i in range(x.size):
        v = np.uint64(x[i])
        out[i] = (v << up) | (v >> down)


@jit
def difference(x: Array, base: Array, bits: int, out: Array) -> None:
    """In the order of values: negative patterns inverted, the others above them."""
    one, top = np.uint64(1), np.uint64(bits - 1)
    sign = one << top
    rest = sign - one
    for i in range(x.size):
        a, b = np.uint64(x[i]), np.uint64(base[i])
        a ^= sign | ((a >> top) * rest)
        b ^= sign | ((b >> top) * rest)
        d = a - b
        out[i] = (d << one) ^ (((d >> top) & one) * (sign | rest))


@jit
def undo_difference(z: Array, base: Array, bits: int, out: Array) -> None:
    one, top = np.uint64(1), np.uint64(bits - 1)
    sign = one << top
    rest = sign - one
    for i in range(z.size):
        v, b = np.uint64(z[i]), np.uint64(base[i])
        d = (v >> one) ^ ((v & one) * (sign | rest))
        b ^= sign | ((b >> top) * rest)
        a = b + d
        out[i] = a ^ (sign | ((((a >> top) & one) ^ one) * rest))
