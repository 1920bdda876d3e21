"""How far one tensor lies from another of the same shape, in one pass: what diff and scan both report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array, Dtype, decode
from nett.core.jit import jit
from nett.core.sweep import Fold

_FIELDS = 9


@jit
def _moved(a: Array, b: Array, a_bits: Array, b_bits: Array, out: Array) -> None:
    changed, both, flips, odd = 0, 0, 0, 0
    a_square, b_square, distance, product, largest = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(a.size):
        changed += a_bits[i] != b_bits[i]
        x, y = np.float64(a[i]), np.float64(b[i])
        d = y - x
        if not (np.isfinite(x) and np.isfinite(y)):
            odd += 1
            continue
        if x != 0 and y != 0:
            both += 1
            flips += (x > 0) != (y > 0)
        a_square += x * x
        b_square += y * y
        distance += d * d
        product += x * y
        largest = max(largest, abs(d))
    out[0], out[1], out[2], out[3] = changed, both, flips, odd
    out[4], out[5], out[6], out[7], out[8] = a_square, b_square, distance, product, largest


@final
@dataclass(frozen=True)
class Movement:
    """From tensor a to tensor b. Counts are of elements; sums leave out those that are not finite."""

    size: int = 0
    changed: int = 0  # elements whose values differ in any bit
    both: int = 0  # elements that are zero in neither
    flips: int = 0  # of those, elements whose sign differs
    nonfinite: int = 0
    a_square: float = 0.0
    b_square: float = 0.0
    distance: float = 0.0  # sum of (b - a)^2
    product: float = 0.0  # sum of a * b
    largest: float = 0.0  # max |b - a|

    @property
    def density(self) -> float:
        """Share of elements that changed."""
        return self.changed / self.size if self.size else 0.0

    @property
    def relative(self) -> float:
        """||b - a|| / ||a||; infinite where a is zero and b is not."""
        if self.distance == 0.0:
            return 0.0
        return sqrt(self.distance / self.a_square) if self.a_square else inf

    @property
    def cosine(self) -> float:
        """Cosine of the angle between a and b; 1 between two zeros, 0 where one is zero."""
        if self.a_square == 0.0 or self.b_square == 0.0:
            return float(self.a_square == self.b_square)
        return self.product / sqrt(self.a_square) / sqrt(self.b_square)

    @property
    def sign_agreement(self) -> float:
        """Share of the elements that are zero in neither whose signs agree; 1 where there is none."""
        return 1.0 - self.flips / self.both if self.both else 1.0

    def __add__(self, other: Movement) -> Movement:
        """Both together, as if the tensors lay behind one another."""
        mine, theirs = list(vars(self).values()), list(vars(other).values())
        total = [a + b for a, b in zip(mine, theirs, strict=True)]
        total[-1] = max(mine[-1], theirs[-1])
        return Movement(*total)


def as_numbers(raw: Array, dtype: Dtype) -> Array:
    """Raw elements as float32, or as float64 where float32 could not hold them."""
    values = decode(raw, dtype)
    if values.dtype in (np.float32, np.float64):
        return values
    return np.asarray(values, np.float64 if values.dtype.itemsize > 2 else np.float32)


def movement(a: Array, b: Array) -> Movement:
    """Between two flat arrays of numbers (float32 or float64), in one pass."""
    if a.dtype != b.dtype:
        a, b = a.astype(np.float64), b.astype(np.float64)
    bits = np.uint64 if a.dtype == np.float64 else np.uint32
    out = np.empty(_FIELDS)
    _moved(a, b, a.view(bits), b.view(bits), out)
    counts = [int(v) for v in out[:4]]
    return Movement(a.size, *counts, *(float(v) for v in out[4:]))


@final
class Moved(Fold):
    """The :class:`Movement` from the first tensor to the second."""

    def __init__(self, a: Dtype, b: Dtype) -> None:
        self._a, self._b = a, b

    def look(self, pieces: Sequence[Array]) -> Movement:
        found = movement(as_numbers(pieces[0], self._a), as_numbers(pieces[1], self._b))
        if self._a == self._b:  # not the numbers: they may be rounded (large integers), or lose a NaN's payload
            bits = f"u{self._a.bytes}"
            return replace(found, changed=int(np.count_nonzero(pieces[0].view(bits) != pieces[1].view(bits))))
        if self._a.kind == self._b.kind == "int":
            return replace(found, changed=int(np.count_nonzero(pieces[0] != pieces[1])))
        return found

    def join(self, before: Any, unit: Any) -> Any:
        return unit if before is None else before + unit

    def settle(self, seen: Any) -> Movement:
        return Movement() if seen is None else seen


@final
@dataclass(frozen=True)
class Difference:
    """b - a as a matrix that is read piece by piece; for its spectrum."""

    a: Any  # a Matrix
    b: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.b.shape)

    def values(self, start: int, stop: int) -> Array:
        """Elements of the flattened difference."""
        left, right = self.a.values(start, stop), self.b.values(start, stop)
        if left.dtype != np.float64 and right.dtype != np.float64:
            left, right = left.astype(np.float32, copy=False), right.astype(np.float32, copy=False)
        return np.asarray(right - left)
