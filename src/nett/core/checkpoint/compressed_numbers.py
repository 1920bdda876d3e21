"""Undoing compressed-tensors' quantisation: integers out of words, then (q - zero point) * scale.

Packing (pack-quantized): q + 2^(bits - 1) as an unsigned number, little-endian, lowest bits first; weights along
rows, zero points along columns.
"""

from __future__ import annotations

import numpy as np

from nett.core.dtypes import Array


def unpacked_rows(words: Array, bits: int, columns: int) -> Array:
    """int16 ``[rows, columns]`` from int32 words ``[rows, ceil(columns * bits / 32)]``; bits 1, 2, 4 or 8."""
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
    each = 32 // bits
    return start // each, -(-stop // each)


def unpacked_columns(words: Array, bits: int, start: int, stop: int) -> Array:
    """int16 ``[stop - start, groups]``: zero points of rows ``start:stop`` from the words that :func:`word_rows`
    names, ``[words, groups]``."""
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
