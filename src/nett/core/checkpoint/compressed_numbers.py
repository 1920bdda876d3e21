"""Undoing compressed-tensors' quantisation: integers out of words, then (q - zero point) * scale.

Packing (pack-quantized): q + 2^(bits - 1) as an unsigned number, little-endian, lowest bits first; weights along
rows, zero points along columns. Numbers of 3, 5, 6 and 7 bits, which do not divide a word, follow one another without
gaps from compressed-tensors 0.18 on; before, each word ended in a gap.
"""

from __future__ import annotations

import numpy as np

from nett.core.dtypes import Array

_BLOCK = 1 << 22  # numbers that are taken apart into bits at a time


def words_of(count: int, bits: int) -> int:
    """Words of 32 bits that ``count`` numbers lie in without gaps."""
    return -(-count * bits // 32)


def packed_rows(codes: Array, bits: int) -> Array:
    """int32 ``[rows, words]`` of integers ``[rows, columns]``, without gaps."""
    rows, columns = codes.shape
    words = np.zeros((rows, words_of(columns, bits)), "<i4")
    step = max(1, _BLOCK // max(1, columns))
    for first in range(0, rows, step):
        numbers = (codes[first : first + step].astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
        ones = np.unpackbits(numbers[:, :, None], axis=2, count=bits, bitorder="little")
        packed = np.packbits(ones.reshape(len(numbers), -1), axis=1, bitorder="little")
        words.view(np.uint8)[first : first + step, : packed.shape[1]] = packed
    return words


def packed_columns(codes: Array, bits: int) -> Array:
    """int32 ``[words, columns]`` of integers ``[rows, columns]``: packed down the columns, as zero points are."""
    return np.ascontiguousarray(packed_rows(np.ascontiguousarray(codes.T), bits).T)


def _without_gaps(words: Array, bits: int, skip: int, count: int) -> Array:
    """int16 ``[rows, count]``: the numbers that follow the first ``skip`` bits of each row of words."""
    found = np.empty((len(words), count), np.int16)
    step = max(1, _BLOCK // max(1, count))
    for at in range(0, len(words), step):
        bytewise = np.ascontiguousarray(words[at : at + step], "<i4").view(np.uint8)
        ones = np.unpackbits(bytewise, axis=1, count=skip + count * bits, bitorder="little")[:, skip:]
        numbers = np.packbits(ones.reshape(len(bytewise), count, bits), axis=2, bitorder="little")[:, :, 0]
        found[at : at + step] = numbers.astype(np.int16) - np.int16(1 << (bits - 1))
    return found


def unpacked_rows(words: Array, bits: int, columns: int) -> Array:
    """int16 ``[rows, columns]`` from int32 words ``[rows, words]``."""
    if 32 % bits:
        return _without_gaps(words, bits, 0, columns)
    bytewise = np.ascontiguousarray(words, "<i4").view(np.uint8)
    each = 8 // bits
    if each == 1:
        codes = bytewise
    else:
        codes = np.empty((len(bytewise), bytewise.shape[1] * each), np.uint8)
        mask = np.uint8((1 << bits) - 1)
        for place in range(each):
            codes[:, place::each] = (bytewise >> np.uint8(place * bits)) & mask
    return np.asarray(codes[:, :columns].astype(np.int16) - np.int16(1 << (bits - 1)))


def word_rows(start: int, stop: int, bits: int) -> tuple[int, int]:
    """Which rows of words hold the zero points of the rows ``start:stop``."""
    return start * bits // 32, words_of(stop, bits)


def unpacked_columns(words: Array, bits: int, start: int, stop: int) -> Array:
    """int16 ``[stop - start, groups]``: zero points of rows ``start:stop`` from the words that :func:`word_rows`
    names, ``[words, groups]``."""
    if 32 % bits:
        return np.ascontiguousarray(_without_gaps(words.T, bits, start * bits % 32, stop - start).T)
    each = 32 // bits
    rows = np.arange(start, stop)
    shifts = (rows % each * bits).astype(np.uint32)[:, None]
    codes = (words.view(np.uint32)[rows // each - start // each] >> shifts) & np.uint32((1 << bits) - 1)
    return np.asarray(codes.astype(np.int16) - np.int16(1 << (bits - 1)))


def spread(small: Array, columns: int, width: int, index: Array | None) -> Array:
    """What a group has, for each of its columns: ``[rows, groups]`` -> ``[rows, columns]``, or what broadcasts so.

    ``index``: the group of each column where it is not that of ``width`` neighbours.
    """
    if small.shape[1] == 1:
        return small
    if index is not None:
        return np.asarray(small[:, index])
    return np.repeat(small, width, axis=1)[:, :columns]
