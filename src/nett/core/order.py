"""Exact order statistics of |x| by radix selection over IEEE 754 bits: no sort, memory independent of size.

The bits of a non-negative float sort like the float, so a histogram of the top 16 bits finds the bin that holds
the k-th value, and a histogram of the next 16 within that bin narrows it, until every bit is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit
from nett.core.passes import Ask, Chunk, Scope

TiePolicy = Literal["all", "lowest-index"]
_BINS = 1 << 16
_ENTRIES = 1 << 21  # of Digits.places, 6 bytes each
_WINDOW = 1 << 17  # bit patterns around a guess that are counted one by one: 1.6 % of the value


@jit
def _histogram(bits: Array, magnitude: Any, prefix: Any, shift: Any, above: Any, digit: Any, bins: Array) -> None:
    for i in range(bits.size):
        b = bits[i] & magnitude
        if (b >> above) == prefix:
            bins[np.uint64((b >> shift) & digit)] += 1


@jit
def _histogram_first(bits: Array, magnitude: Any, shift: Any, bins: Array) -> None:
    for i in range(bits.size):
        bins[np.uint64((bits[i] & magnitude) >> shift)] += 1


@jit
def _histogram_window(bits: Array, magnitude: Any, low: Any, span: Any, bins: Array) -> None:
    """How many lie below ``low`` (first bin), on each of ``span`` bit patterns from there on, and beyond (last bin)."""
    below, inside = np.int64(0), np.int64(0)
    for i in range(bits.size):  # apart from the rare ones, so that it is done with vectors
        below += np.int64((bits[i] & magnitude) < low)
    for i in range(bits.size):
        place = (bits[i] & magnitude) - low  # wraps round where it is below
        if place < span:
            bins[np.int64(place) + 1] += 1
            inside += 1
    bins[0] += below
    bins[bins.size - 1] += bits.size - below - inside


@jit
def _count_equal(bits: Array, magnitude: Any, value: Any) -> int:
    count = 0
    for i in range(bits.size):
        if (bits[i] & magnitude) == value:
            count += 1
    return count


@jit
def _first_equals(bits: Array, magnitude: Any, value: Any, count: int) -> int:
    """Where the first ``count`` elements equal to ``value`` end."""
    left = count
    for i in range(bits.size):
        left -= int((bits[i] & magnitude) == value)
        if left == 0:
            return i + 1
    return int(bits.size)


@jit
def _trim(bits: Array, magnitude: Any, least: Any, out: Array) -> None:
    for i in range(bits.size):
        b = bits[i]
        out[i] = b if (b & magnitude) >= least else b ^ b


def _bits(values: Array) -> tuple[Array, Any]:
    """The values' bits as unsigned integers, and the mask that drops the sign."""
    flat = np.ascontiguousarray(values).ravel()
    if flat.dtype == np.float64:
        return flat.view(np.uint64), np.uint64((1 << 63) - 1)
    return flat.astype(np.float32, copy=False).view(np.uint32), np.uint32((1 << 31) - 1)


@final
@dataclass(frozen=True)
class Cut:
    """The answer to :class:`Largest` for one chunk: what is kept of it."""

    threshold: int
    ties: int  # how many of the values equal to the threshold stay in this chunk, -1 for all
    everything: bool = False
    nothing: bool = False

    def trim(self, values: Array) -> Array:
        """``values`` with all but the kept entries set to zero; same shape and type."""
        if self.everything:
            return values
        if self.nothing:
            return np.zeros_like(values)
        bits, magnitude = _bits(values)
        out = np.empty(bits.size, bits.dtype)
        threshold = bits.dtype.type(self.threshold)
        above = bits.dtype.type(self.threshold + 1)
        if self.ties < 0:
            _trim(bits, magnitude, threshold, out)
        elif self.ties == 0:
            _trim(bits, magnitude, above, out)
        else:
            place = _first_equals(bits, magnitude, threshold, self.ties)
            _trim(bits[:place], magnitude, threshold, out[:place])
            _trim(bits[place:], magnitude, above, out[place:])
        kept = out.view(np.float64 if bits.itemsize == 8 else np.float32)
        return kept.astype(values.dtype, copy=False).reshape(values.shape)


@final
@dataclass
class Digits:
    """What a round of :class:`Largest` gathers: how often each value of the digit at hand occurs.

    ``places`` holds the same chunk by chunk, as (digits, counts), while the last digit is being counted and exact
    counts are wanted: it saves a reading of everything. None where it would take too much memory.
    """

    bins: Array
    places: dict[int, tuple[Array, Array]] | None = None
    entries: int = 0


@final
@dataclass(frozen=True)
class Largest(Ask):
    """The largest share ``density`` of |values| over a scope.

    ``ties="all"``: with d values and k = d - int(d * density), keep every |x| >= the k-th smallest, so the k-th
    itself and all its equals stay (the rule of the TIES-Merging authors). ``ties="lowest-index"``: exactly
    max(1, int(d * density)) values, the first ones in order among equals.
    """

    values: Array
    density: float
    ties: TiePolicy = "all"
    scope: Scope = "tensor"

    def foregone(self) -> Any:
        if self.density >= 1:
            return {"everything": True}
        return {"nothing": True} if self.density <= 0 and self.ties == "lowest-index" else None

    def _width(self) -> int:
        return 63 if self.values.dtype == np.float64 else 31

    @property
    def by_sample(self) -> bool:
        return self.ties == "all" and self._width() == 31

    def guess(self, seen: Any) -> Any:
        """The threshold is close to the sample's: a window around it is counted, and mostly one round is enough."""
        place = int(np.searchsorted(np.cumsum(seen.bins), self._rank(int(seen.bins.sum()))))
        return {"low": max(0, ((2 * place + 1) << 14) - _WINDOW // 2)}

    def _rank(self, total: int) -> int:
        """Which value in ascending order, counted from 1, is the smallest that stays."""
        if self.ties == "all":
            return total - int(total * self.density)
        return total - max(1, int(total * self.density)) + 1

    def look(self, known: Any, seen: Any, chunk: Chunk) -> Any:
        bits, magnitude = _bits(self.values)
        kind = bits.dtype.type
        if known is not None and "low" in known:
            seen = Digits(np.zeros(_WINDOW + 2, np.int64)) if seen is None else seen
            _histogram_window(bits, magnitude, kind(known["low"]), kind(_WINDOW), seen.bins)
            return seen
        if known is not None and known["left"] == 0:
            seen = {} if seen is None else seen
            seen[chunk.index] = int(_count_equal(bits, magnitude, kind(known["prefix"])))
            return seen
        seen = Digits(np.zeros(_BINS, np.int64), {}) if seen is None else seen
        if known is None:
            _histogram_first(bits, magnitude, kind(self._width() - 16), seen.bins)
            return seen
        above = known["left"]
        shift = max(0, above - 16)
        digit = kind((1 << (above - shift)) - 1)
        exact = not shift and self.ties != "all" and seen.places is not None
        here = np.zeros(int(digit) + 1, np.uint32) if exact else seen.bins
        _histogram(bits, magnitude, kind(known["prefix"]), kind(shift), kind(above), digit, here)
        if not exact:
            return seen
        digits = np.flatnonzero(here != 0)  # of booleans it is six times as fast
        seen.bins[digits] += here[digits]
        seen.places[chunk.index] = (digits.astype(np.uint16), here[digits])
        seen.entries += digits.size
        return _within_bounds(seen)

    def join(self, a: Any, b: Any) -> Any:
        if isinstance(a, dict):
            return a | b
        places = a.places | b.places if a.places is not None and b.places is not None else None
        return _within_bounds(Digits(a.bins + b.bins, places, a.entries + b.entries))

    def settle(self, known: Any, seen: Any) -> tuple[Any, bool]:
        if isinstance(seen, dict):
            return _with_starts(known, seen), True
        if known is not None and "low" in known:
            cumulative = np.cumsum(seen.bins)
            place = int(np.searchsorted(cumulative, self._rank(int(cumulative[-1]))))
            if not 0 < place <= _WINDOW:
                return None, False
            return {"prefix": known["low"] + place - 1, "keep": -1}, True
        if known is None:
            rank = self._rank(int(seen.bins.sum()))
            known = {"rank": rank, "prefix": 0, "left": self._width(), "above": 0}
        # `rank` counts from the smallest value of the bin found so far, starting at 1.
        left = known["left"]
        width = min(16, left)
        cumulative = np.cumsum(seen.bins[: 1 << width])
        place = int(np.searchsorted(cumulative, known["rank"]))
        inside = int(seen.bins[place])
        rank = known["rank"] - (int(cumulative[place]) - inside)
        above = known["above"] + int(cumulative[-1] - cumulative[place])
        next_known = {
            "rank": rank,
            "prefix": (known["prefix"] << width) | place,
            "left": left - width,
            "above": above,
        }
        if next_known["left"] > 0:
            return next_known, False
        next_known["keep"] = inside - rank + 1  # equals of the threshold that belong to the exact count
        if self.ties == "all" or next_known["keep"] == inside:
            return next_known | {"keep": -1}, True
        if not seen.places:
            return next_known, False
        return _with_starts(next_known, {i: _count_at(place, *part) for i, part in seen.places.items()}), True

    def tell(self, known: Any, chunk: Chunk) -> Cut:
        if "prefix" not in known:
            return Cut(0, -1, everything="everything" in known, nothing="nothing" in known)
        if known["keep"] < 0:
            return Cut(known["prefix"], -1)
        before, here = known["starts"][str(chunk.index)]
        left = known["keep"] - before
        return Cut(known["prefix"], -1 if here <= left else max(0, left))


def _within_bounds(seen: Digits) -> Digits:
    if seen.entries > _ENTRIES:
        seen.places, seen.entries = None, 0
    return seen


def _count_at(place: int, digits: Array, counts: Array) -> int:
    """How often ``place`` occurs, of sorted ``digits`` with their ``counts``."""
    at = int(np.searchsorted(digits, place))
    return int(counts[at]) if at < digits.size and digits[at] == place else 0


def _with_starts(known: Mapping[str, Any], equals: Mapping[int, int]) -> dict[str, Any]:
    """For each chunk, how many equals of the threshold lie before it and in it."""
    starts, before = {}, 0
    for index in sorted(equals):
        starts[str(index)] = [before, equals[index]]
        before += equals[index]
    return dict(known) | {"starts": starts}
