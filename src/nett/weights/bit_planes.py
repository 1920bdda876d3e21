"""Bipolar integers as bit planes (P56): n bits stand for the sum of (2 b_i - 1) 2^i, an odd number without a sign bit.

A row of K numbers becomes n rows of bits, 64 to a word; groups of columns that share a scale begin on a word of their own.
Bits that only fill a word are zero on both sides of a product, so that they differ nowhere and count for nothing:

    w . x = sum over planes i, j of 2^(i+j) (K - 2 popcount(w_i xor x_j)),   K the true number of columns
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import UsageError

WORD = 64
WIDEST = 8
_BLOCK = 1 << 22  # words that a product without compiled code holds at once


def largest(bits: int) -> int:
    """The largest of the bipolar integers of so many bits."""
    return (1 << bits) - 1


@final
@dataclass(frozen=True)
class Layout:
    """How a row of ``length`` columns lies in words, ``group`` columns from one word's start on."""

    length: int
    group: int

    @classmethod
    def of(cls, length: int, group: int = 0) -> Layout:
        """``group`` 0: the row is one group."""
        return cls(length, min(group, length) or length)

    @property
    def groups(self) -> int:
        return -(-self.length // self.group)

    @property
    def group_words(self) -> int:
        return -(-self.group // WORD)

    @property
    def words(self) -> int:
        return self.groups * self.group_words

    @property
    def lengths(self) -> Array:
        """Columns of each group, int64; the last may have fewer."""
        lengths = np.full(self.groups, self.group, np.int64)
        lengths[-1] = self.length - self.group * (self.groups - 1)
        return lengths


def check_bits(bits: int) -> None:
    """UsageError unless bit planes of this width exist."""
    if not 1 <= bits <= WIDEST:
        raise UsageError(f"bits = {bits} is out of range: 1 <= bits <= {WIDEST}", where="weights/bipolar_int")


def pack(codes: Array, bits: int, group: int = 0) -> Array:
    """Odd integers ``[rows, columns]`` as bit planes uint64 ``[rows, bits, words]``."""
    check_bits(bits)
    wide = np.asarray(codes).astype(np.int16, copy=False)
    off = (wide & 1 == 0) | (np.abs(wide) > largest(bits))
    if off.any():
        row, column = (int(i) for i in np.argwhere(off)[0])
        raise UsageError(
            f"the number {int(wide[row, column])} at [{row}, {column}] is no bipolar integer of {bits} bits: these are the"
            f" odd numbers from {-largest(bits)} to {largest(bits)}"
        )
    layout = Layout.of(wide.shape[1], group)
    rows = len(wide)
    digits = np.zeros((rows, layout.groups, layout.group_words * WORD), np.uint8)
    whole = np.zeros((rows, layout.groups * layout.group), np.uint8)
    whole[:, : layout.length] = (wide + largest(bits)) >> 1
    digits[:, :, : layout.group] = whole.reshape(rows, layout.groups, layout.group)
    planes = np.empty((rows, bits, layout.words), np.uint64)
    for i in range(bits):
        packed = np.packbits((digits >> i) & 1, axis=2, bitorder="little")
        planes[:, i] = packed.reshape(rows, -1).view("<u8")
    return planes


def unpack(planes: Array, length: int, group: int = 0) -> Array:
    """The odd integers, int16 ``[rows, length]``: the inverse of :func:`pack`."""
    layout = Layout.of(length, group)
    rows, bits, _ = planes.shape
    value = np.zeros((rows, layout.groups, layout.group_words * WORD), np.int16)
    for i in range(bits):
        stored = np.ascontiguousarray(planes[:, i]).astype("<u8", copy=False).view(np.uint8)
        value += np.unpackbits(stored, axis=1, bitorder="little").astype(np.int16).reshape(value.shape) << i
    whole = value[:, :, : layout.group].reshape(rows, -1)[:, :length]
    return np.asarray(2 * whole - largest(bits))


def products(weights: Array, inputs: Array, layout: Layout) -> Array:
    """Exact products of every row of ``inputs`` with every row of ``weights`` (both planes), int64
    ``[inputs, weights, groups]``, by NumPy alone."""
    rows, wide, _ = weights.shape
    columns, narrow, _ = inputs.shape
    found = np.empty((columns, rows, layout.groups), np.int64)
    top = layout.lengths * largest(wide) * largest(narrow)
    step = max(1, _BLOCK // max(1, rows * layout.words))
    for first in range(0, columns, step):
        part = inputs[first : first + step]
        differ = np.zeros((len(part), rows, layout.groups), np.int64)
        for i in range(wide):
            for j in range(narrow):
                counts = np.bitwise_count(weights[None, :, i] ^ part[:, None, j])
                by_group = counts.reshape(len(part), rows, layout.groups, -1).sum(axis=3, dtype=np.int64)
                differ += by_group << (i + j)
        found[first : first + step] = top - 2 * differ
    return found
