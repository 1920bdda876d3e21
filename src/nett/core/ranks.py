"""Exact order statistics of signed values, several at once, by radix selection: no sort, memory independent of size.

The bits of a float, with all of them turned round where it is negative and the sign bit alone where it is not, sort
like the float. A histogram of the top 16 bits finds the bin that holds a rank; one of the next 16 within that bin
narrows it, until every bit is known. Ranks of one question share the readings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit
from nett.core.passes import Ask, Chunk, Scope

_DIGIT = 16
_BINS = 1 << _DIGIT


@jit
def _histogram(bits: Array, sign: Any, prefix: Any, above: Any, shift: Any, digit: Any, bins: Array) -> None:
    for i in range(bits.size):
        b = bits[i]
        key = ~b if b & sign else b | sign
        if (key >> above) == prefix:
            bins[np.int64((key >> shift) & digit)] += 1


@jit
def _histogram_first(bits: Array, sign: Any, shift: Any, bins: Array) -> None:
    for i in range(bits.size):
        b = bits[i]
        key = ~b if b & sign else b | sign
        bins[np.int64(key >> shift)] += 1


@jit
def _extremes(values: Array) -> tuple[float, float]:
    low, high = values[0], values[0]
    for i in range(values.size):
        low = min(low, values[i])
        high = max(high, values[i])
    return low, high


def _bits(values: Array) -> tuple[Array, Any]:
    """The values' bits as unsigned integers, and the sign bit; -0 counts as smaller than +0."""
    flat = np.ascontiguousarray(values).ravel()
    if flat.dtype == np.float64:
        return flat.view(np.uint64), np.uint64(1 << 63)
    return flat.astype(np.float32, copy=False).view(np.uint32), np.uint32(1 << 31)


def _value(key: int, width: int) -> float:
    """The float whose sorting key this is."""
    sign = 1 << (width - 1)
    bits = key & ~sign if key & sign else ~key & ((1 << width) - 1)
    kind, real = (np.uint64, np.float64) if width == 64 else (np.uint32, np.float32)
    return float(np.array([bits], kind).view(real)[0])


@final
@dataclass(frozen=True)
class Ranks(Ask):
    """The values at some places of the ascending order over a scope, as a list of floats.

    ``places`` gives them, counted from 0, for the number of values; what lies outside is taken to the nearest end.
    """

    values: Array
    places: Callable[[int], Sequence[int]]
    scope: Scope = "tensor"

    def foregone(self) -> Any:
        return None

    @property
    def _width(self) -> int:
        return 64 if self.values.dtype == np.float64 else 32

    def look(self, known: Any, seen: Any, chunk: Chunk) -> Any:
        bits, sign = _bits(self.values)
        kind = bits.dtype.type
        if known is None:
            seen = {"": np.zeros(_BINS, np.int64)} if seen is None else seen
            _histogram_first(bits, sign, kind(self._width - _DIGIT), seen[""])
            return seen
        left = known["left"]
        prefixes = sorted({place["prefix"] for place in known["places"]})
        seen = {p: np.zeros(_BINS, np.int64) for p in prefixes} if seen is None else seen
        for prefix in prefixes:
            _histogram(bits, sign, kind(prefix), kind(left), kind(left - _DIGIT), kind(_BINS - 1), seen[prefix])
        return seen

    def join(self, a: Any, b: Any) -> Any:
        return {key: a[key] + b[key] for key in a}

    def settle(self, known: Any, seen: Any) -> tuple[Any, bool]:
        if known is None:
            total = int(seen[""].sum())
            ranks = [min(max(int(rank), 0), total - 1) for rank in self.places(total)]
            places: list[dict[str, Any]] = [{"rank": rank, "prefix": ""} for rank in ranks]
            left = self._width
        else:
            places, left = known["places"], known["left"]
        found = []
        for place in places:
            bins = seen[place["prefix"]]
            cumulative = np.cumsum(bins)
            digit = int(np.searchsorted(cumulative, place["rank"], side="right"))
            before = int(cumulative[digit] - bins[digit])
            prefix = ((place["prefix"] or 0) << _DIGIT) | digit
            found.append({"rank": place["rank"] - before, "prefix": prefix})
        return {"left": left - _DIGIT, "places": found}, left == _DIGIT

    def tell(self, known: Any, chunk: Chunk) -> list[float]:
        return [_value(place["prefix"], self._width) for place in known["places"]]


@final
@dataclass(frozen=True)
class Extremes(Ask):
    """The smallest and the largest of some values over a scope: (low, high)."""

    values: Array
    scope: Scope = "tensor"

    def foregone(self) -> Any:
        return None

    def look(self, known: Any, seen: Any, chunk: Chunk) -> Any:
        if self.values.size == 0:
            return seen
        low, high = _extremes(np.ascontiguousarray(self.values).ravel())
        return (float(low), float(high)) if seen is None else (min(seen[0], float(low)), max(seen[1], float(high)))

    def join(self, a: Any, b: Any) -> Any:
        if a is None or b is None:
            return b if a is None else a
        return min(a[0], b[0]), max(a[1], b[1])

    def settle(self, known: Any, seen: Any) -> tuple[Any, bool]:
        return list(seen) if seen is not None else [0.0, 0.0], True

    def tell(self, known: Any, chunk: Chunk) -> tuple[float, float]:
        low, high = known
        return low, high
