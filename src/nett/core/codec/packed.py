"""Differences whose upper two bytes are mostly small: two or four of them a byte, and the few large ones apart.

To undo one, the small numbers of a tile are unpacked into the nearest cache, the large ones, whose places their full
bits tell, are written among them there, and all are added to the base. Nothing but the base and the result goes through
memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit

TILE = 1 << 12  # numbers, of which each step finds in the nearest cache what the one before left there
AHEAD = 4  # places that are written beyond the last
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
def _ones(v: Any) -> int:
    """How many bits of a word (uint64) are set."""
    pairs = np.uint64(0x3333333333333333)
    v = v - ((v >> np.uint64(1)) & np.uint64(0x5555555555555555))
    v = (v & pairs) + ((v >> np.uint64(2)) & pairs)
    v = (v + (v >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((v * np.uint64(0x0101010101010101)) >> np.uint64(56))  # type: ignore[return-value]


@jit
def count_full(words: Array, each: int) -> int:
    """How many of the numbers packed ``each`` a byte have all their bits set. ``words``: uint64."""
    count = 0
    for i in range(words.size):
        v = words[i] & (words[i] >> np.uint64(1))
        if each == 4:
            v &= np.uint64(0x5555555555555555)
        else:
            v &= (v >> np.uint64(2)) & np.uint64(0x1111111111111111)
        count += _ones(v)
    return count


@jit
def full_pairs(words: Array, masks: Array) -> None:
    """One bit (uint16 a word) for each of the 16 numbers of four bits in a word: whether all its bits are set."""
    for i in range(words.size):
        v = words[i] & (words[i] >> np.uint64(1))
        v = v & (v >> np.uint64(2)) & np.uint64(0x1111111111111111)
        v = (v | (v >> np.uint64(3))) & np.uint64(0x0303030303030303)
        v = (v | (v >> np.uint64(6))) & np.uint64(0x000F000F000F000F)
        v = (v | (v >> np.uint64(12))) & np.uint64(0x000000FF000000FF)
        masks[i] = np.uint16(v | (v >> np.uint64(24)))


@jit
def full_fours(words: Array, masks: Array) -> None:
    """The same (uint32 a word) for the 32 numbers of two bits in a word."""
    for i in range(words.size):
        v = words[i] & (words[i] >> np.uint64(1)) & np.uint64(0x5555555555555555)
        v = (v | (v >> np.uint64(1))) & np.uint64(0x3333333333333333)
        v = (v | (v >> np.uint64(2))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        v = (v | (v >> np.uint64(4))) & np.uint64(0x00FF00FF00FF00FF)
        v = (v | (v >> np.uint64(8))) & np.uint64(0x0000FFFF0000FFFF)
        masks[i] = np.uint32(v | (v >> np.uint64(16)))


@jit
def places_of(bits: Array, places: Array) -> int:
    """Fill ``places`` (uint32, with room for ``AHEAD`` more) with the places of the bits that are set in ``bits``
    (uint64). Returns how many; -1 where they are more than there is room for.

    Four at a time, set or not, and the count says how many were: a branch a bit, guessed wrong, would take longer.
    """
    one, sequence, top, count = np.uint64(1), np.uint64(SEQUENCE), np.uint64(58), 0
    for i in range(bits.size):
        v = bits[i]
        if v == np.uint64(0):
            continue
        at, first = count, np.uint32(i * 64)
        count += _ones(v)
        if count + AHEAD > places.size:
            return -1
        while at < count:
            for k in range(4):
                rest = v & (v - one)
                places[at + k] = first + np.uint32(PLACES[((v ^ rest) * sequence) >> top])
                v = rest
            at += 4
    return count


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
def upper(words: Array, each: int, low: Array, high: Array, at: int, rare: int, z: Array, places: Array) -> int:
    """Fill ``z`` (int16) with the numbers ``at`` and on: those that are packed in ``words``, and from the ``rare``-th on
    those that were kept apart. Returns the number of the first of these that lies behind; -1 where there are too few.

    ``at``: a multiple of ``TILE``; ``z``: as long, but for the last; ``places``: room for ``TILE + AHEAD`` of them.
    """
    first = at // (8 * each)
    held = words[first : min(words.size, first + TILE // (8 * each))]
    packed = held.view(np.uint8)
    whole = z.size // each
    bits = 8 // each
    if each == 2:
        for i in range(whole):
            z[2 * i] = packed[i] & np.uint8(15)
            z[2 * i + 1] = packed[i] >> np.uint8(4)
        pairs = np.zeros(TILE // 16, np.uint16)
        full_pairs(held, pairs)
        count = places_of(pairs.view(np.uint64), places)
    else:
        for i in range(whole):
            v = packed[i]
            z[4 * i] = v & np.uint8(3)
            z[4 * i + 1] = (v >> np.uint8(2)) & np.uint8(3)
            z[4 * i + 2] = (v >> np.uint8(4)) & np.uint8(3)
            z[4 * i + 3] = v >> np.uint8(6)
        fours = np.zeros(TILE // 32, np.uint32)
        full_fours(held, fours)
        count = places_of(fours.view(np.uint64), places)
    for i in range(whole * each, z.size):
        z[i] = (packed[whole] >> np.uint8((i - whole * each) * bits)) & np.uint8((1 << bits) - 1)
    if rare + count > low.size or (count > 0 and places[count - 1] >= z.size):
        return -1
    for k in range(count):
        z[places[k]] = np.int16(np.int16(low[rare + k]) | np.int16(np.int16(high[rare + k]) << np.int16(8)))
    return rare + count


@jit
def join2(words: Array, each: int, low: Array, high: Array, base: Array, out: Array) -> int:
    """``out`` from packed differences to ``base`` (both int16). Returns how many were kept apart; -1 where there are
    too few."""
    held, places, rare = np.empty(TILE, np.int16), np.empty(TILE + AHEAD, np.uint32), 0
    for at in range(0, out.size, TILE):
        made, ground = out[at : at + TILE], base[at : at + TILE]
        z = held[: made.size]
        rare = upper(words, each, low, high, at, rare, z, places)
        if rare < 0:
            return -1
        for i in range(made.size):
            made[i] = _undo2(z[i], ground[i])
    return rare


@jit
def join4(p: Array, q: Array, words: Array, each: int, low: Array, high: Array, base: Array, out: Array) -> int:
    """The same for numbers of four bytes (int32): ``p`` and ``q`` are the lower two of the difference."""
    held, places, rare = np.empty(TILE, np.int16), np.empty(TILE + AHEAD, np.uint32), 0
    for at in range(0, out.size, TILE):
        made, ground, first, second = out[at : at + TILE], base[at : at + TILE], p[at : at + TILE], q[at : at + TILE]
        z = held[: made.size]
        rare = upper(words, each, low, high, at, rare, z, places)
        if rare < 0:
            return -1
        for i in range(made.size):
            lower = np.int32(np.int32(first[i]) | np.int32(np.int32(second[i]) << np.int32(8)))
            made[i] = _undo4(np.int32(lower | np.int32(np.int32(z[i]) << np.int32(16))), ground[i])
    return rare


@jit
def join_upper(words: Array, each: int, low: Array, high: Array, first: Array, second: Array) -> int:
    """The upper two bytes themselves, for numbers of any width."""
    held, places, rare = np.empty(TILE, np.int16), np.empty(TILE + AHEAD, np.uint32), 0
    for at in range(0, first.size, TILE):
        z = held[: min(TILE, first.size - at)]
        rare = upper(words, each, low, high, at, rare, z, places)
        if rare < 0:
            return -1
        for i in range(z.size):
            first[at + i] = np.uint8(z[i])
            second[at + i] = np.uint8(np.int16(z[i] >> np.int16(8)))
    return rare
