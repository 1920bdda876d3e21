"""Differences whose upper two bytes are mostly small: two or four of them a byte, and the few large ones apart.

To undo one, the small numbers of a tile are unpacked into the nearest cache and added to the base there, as if all
were small; the large ones, whose places their full bits tell, are then written over it. Nothing but the base and the
result goes through memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit

TILE = 1 << 13  # numbers: small, base and result of a tile lie in the nearest cache
SPARSE = 16  # numbers for each one apart, from which it pays to skip what holds none
# The place of the lowest bit of a word from its product with a de Bruijn sequence.
SEQUENCE = 0x03F79D71B4CB0A89
PLACES = np.zeros(64, np.uint8)
PLACES[[((SEQUENCE << i) & ((1 << 64) - 1)) >> 58 for i in range(64)]] = np.arange(64)


@jit
def gather_rare(low: Array, high: Array, limit: int, small: Array, rare_low: Array, rare_high: Array) -> int:
    """``small``: the number of two bytes where it is below ``limit``, else ``limit``, and the number goes to the
    rare ones, which have room for one more than all. Returns how many those are."""
    for i in range(low.size):
        large = (high[i] > 0) | (low[i] > limit)
        small[i] = np.uint8(limit) if large else low[i]
    count = 0
    for i in range(low.size):  # written always, kept if it is rare: no branch to guess
        rare_low[count] = low[i]
        rare_high[count] = high[i]
        count += small[i] == limit
    return count


@jit
def pack2(small: Array, packed: Array) -> None:
    """Two numbers below 16 a byte."""
    for i in range(packed.size):
        packed[i] = small[2 * i] | (small[2 * i + 1] << np.uint8(4))


@jit
def pack4(small: Array, packed: Array) -> None:
    """Four numbers below 4 a byte."""
    for i in range(packed.size):
        low = small[4 * i] | (small[4 * i + 1] << np.uint8(2))
        packed[i] = low | (small[4 * i + 2] << np.uint8(4)) | (small[4 * i + 3] << np.uint8(6))


@jit
def unpack2(packed: Array, small: Array) -> None:
    for i in range(packed.size):
        v = packed[i]
        small[2 * i] = v & np.uint8(15)
        small[2 * i + 1] = v >> np.uint8(4)


@jit
def unpack4(packed: Array, small: Array) -> None:
    for i in range(packed.size):
        v = packed[i]
        small[4 * i] = v & np.uint8(3)
        small[4 * i + 1] = (v >> np.uint8(2)) & np.uint8(3)
        small[4 * i + 2] = (v >> np.uint8(4)) & np.uint8(3)
        small[4 * i + 3] = v >> np.uint8(6)


@jit
def count_full(words: Array, each: int) -> int:
    """How many of the numbers packed ``each`` a byte have all their bits set. ``words``: uint64."""
    count, low = np.uint64(0), np.uint64(0x0F0F0F0F0F0F0F0F)
    pairs = np.uint64(0x3333333333333333)
    for i in range(words.size):
        v = words[i] & (words[i] >> np.uint64(1))
        if each == 4:
            v &= np.uint64(0x5555555555555555)
        else:
            v &= (v >> np.uint64(2)) & np.uint64(0x1111111111111111)
        v = (v & pairs) + ((v >> np.uint64(2)) & pairs)
        v = (v + (v >> np.uint64(4))) & low
        count += (v * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return int(count)


@jit
def find_full(words: Array, each: int, places: Array) -> None:
    """Fill ``places`` (uint32) with which numbers have all their bits set: as many as :func:`count_full` says, where
    they are few. Word by word, skipping those without any."""
    one, sequence, count = np.uint64(1), np.uint64(SEQUENCE), 0
    shift = np.uint64(2 if each == 2 else 1)
    for i in range(words.size):
        v = words[i] & (words[i] >> one)
        if each == 4:
            v &= np.uint64(0x5555555555555555)
        else:
            v &= (v >> np.uint64(2)) & np.uint64(0x1111111111111111)
        first = i * 8 * each
        while v != np.uint64(0):
            rest = v & (v - one)
            bit = np.uint64(PLACES[((v ^ rest) * sequence) >> np.uint64(58)])
            places[count] = first + np.int64(bit >> shift)
            count += 1
            v = rest


@jit
def find_many_full(small: Array, limit: int, places: Array) -> None:
    """The same where they are many, of unpacked numbers; ``places`` has room for one more."""
    count = np.uint64(0)
    for i in range(small.size):  # no branch: to guess one wrong takes longer than ten such steps
        places[count] = i
        count += np.uint64(small[i] == limit)


@jit
def put(places: Array, rare: Array, out: Array) -> None:
    for i in range(places.size):
        out[places[i]] = rare[i]


@jit
def _undo2(z: Any, base: Any) -> Any:
    """The number that lies the folded distance ``z`` from ``base`` in the order of values (all int16)."""
    one, top, rest = np.int16(1), np.int16(15), np.int16(0x7FFF)
    b = np.int16(base ^ np.int16((base >> top) & rest))
    a = np.int16(b + np.int16(np.int16(np.int16(z >> one) & rest) ^ np.int16(-(z & one))))
    return np.int16(a ^ np.int16((a >> top) & rest))


@jit
def _undo4(z: Any, base: Any) -> Any:
    one, top, rest = np.int32(1), np.int32(31), np.int32(0x7FFFFFFF)
    b = np.int32(base ^ np.int32((base >> top) & rest))
    a = np.int32(b + np.int32(np.int32(np.int32(z >> one) & rest) ^ np.int32(-(z & one))))
    return np.int32(a ^ np.int32((a >> top) & rest))


@jit
def join_small2(packed: Array, each: int, base: Array, out: Array) -> None:
    """``out`` from differences to ``base`` (int16), as if none were kept apart."""
    small = np.empty(TILE, np.uint8)
    for at in range(0, out.size, TILE):
        made, ground = out[at : at + TILE], base[at : at + TILE]
        part = packed[at // each : (at + made.size + each - 1) // each]
        if each == 2:
            unpack2(part, small)
        else:
            unpack4(part, small)
        for i in range(made.size):
            made[i] = _undo2(np.int16(small[i]), ground[i])


@jit
def join_small4(p: Array, q: Array, packed: Array, each: int, base: Array, out: Array) -> None:
    """The same for numbers of four bytes (int32): ``p`` and ``q`` are the lower two of the difference."""
    small = np.empty(TILE, np.uint8)
    for at in range(0, out.size, TILE):
        made, ground, low, high = out[at : at + TILE], base[at : at + TILE], p[at : at + TILE], q[at : at + TILE]
        part = packed[at // each : (at + made.size + each - 1) // each]
        if each == 2:
            unpack2(part, small)
        else:
            unpack4(part, small)
        for i in range(made.size):
            z = np.int32(np.int32(low[i]) | np.int32(np.int32(high[i]) << np.int32(8)))
            z = np.int32(z | np.int32(np.int32(small[i]) << np.int32(16)))
            made[i] = _undo4(z, ground[i])


@jit
def join_rare2(places: Array, low: Array, high: Array, base: Array, out: Array) -> None:
    """Write the numbers that were kept apart to their places."""
    for i in range(places.size):
        at = places[i]
        z = np.int16(np.int16(low[i]) | np.int16(np.int16(high[i]) << np.int16(8)))
        out[at] = _undo2(z, base[at])


@jit
def join_rare4(places: Array, p: Array, q: Array, low: Array, high: Array, base: Array, out: Array) -> None:
    for i in range(places.size):
        at = places[i]
        z = np.int32(np.int32(p[at]) | np.int32(np.int32(q[at]) << np.int32(8)))
        z = np.int32(z | np.int32(np.int32(low[i]) << np.int32(16)))
        out[at] = _undo4(np.int32(z | np.int32(np.int32(high[i]) << np.int32(24))), base[at])
