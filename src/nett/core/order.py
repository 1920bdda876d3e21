"""Exact order statistics of |x| by radix selection over IEEE 754 bits: no sort, memory independent of size.

The bits of a non-negative float sort like the float, so a histogram of the top 16 bits finds the bin that holds
the k-th value, and a histogram of the next 16 within that bin narrows it, until every bit is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit
from nett.core.passes import Ask, Chunk, Scope

TiePolicy = Literal["all", "lowest-index"]
_BINS = 1 << 16


@jit
def _histogram(bits: Array, magnitude: Any, prefix: Any, shift: Any, above: Any, digit: Any, bins: Array) -> None:
    for i in range(bits.size):
        b = bits[i] & magnitude
        if (b >> above) == prefix:
            bins[np.int64((b >> shift) & digit)] += 1


@jit
def _histogram_first(bits: Array, magnitude: Any, shift: Any, bins: Array) -> None:
    for i in range(bits.size):
        bins[np.int64((bits[i] & magnitude) >> shift)] += 1


@jit
def _count_equal(bits: Array, magnitude: Any, value: Any) -> int:
    count = 0
    for i in range(bits.size):
        if (bits[i] & magnitude) == value:
            count += 1
    return count


@jit
def _trim(values: Array, bits: Array, magnitude: Any, threshold: Any, ties: int, out: Array) -> None:
    if ties < 0:
        for i in range(bits.size):
            out[i] = values[i] if (bits[i] & magnitude) >= threshold else 0.0
        return
    left = ties
    for i in range(bits.size):
        b = bits[i] & magnitude
        if b > threshold:
            out[i] = values[i]
        elif b == threshold and left > 0:
            out[i] = values[i]
            left -= 1
        else:
            out[i] = 0.0


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
        out = np.empty(bits.size, values.dtype)
        _trim(values.ravel(), bits, magnitude, bits.dtype.type(self.threshold), self.ties, out)
        return out.reshape(values.shape)


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

    def look(self, known: Any, seen: Any, chunk: Chunk) -> Any:
        bits, magnitude = _bits(self.values)
        kind = bits.dtype.type
        if known is not None and known["left"] == 0:
            seen = {} if seen is None else seen
            seen[chunk.index] = int(_count_equal(bits, magnitude, kind(known["prefix"])))
            return seen
        seen = np.zeros(_BINS, np.int64) if seen is None else seen
        if known is None:
            _histogram_first(bits, magnitude, kind(self._width() - 16), seen)
        else:
            above = known["left"]
            shift = max(0, above - 16)
            digit = kind((1 << (above - shift)) - 1)
            _histogram(bits, magnitude, kind(known["prefix"]), kind(shift), kind(above), digit, seen)
        return seen

    def join(self, a: Any, b: Any) -> Any:
        return a | b if isinstance(a, dict) else a + b

    def settle(self, known: Any, seen: Any) -> tuple[Any, bool]:
        if isinstance(seen, dict):
            starts, before = {}, 0
            for index in sorted(seen):
                starts[str(index)] = [before, seen[index]]
                before += seen[index]
            return known | {"starts": starts}, True
        if known is None:
            total = int(seen.sum())
            if self.ties == "all":
                rank = total - int(total * self.density)
            else:
                rank = total - max(1, int(total * self.density)) + 1
            known = {"rank": rank, "prefix": 0, "left": self._width(), "above": 0}
        # `rank` counts from the smallest value of the bin found so far, starting at 1.
        left = known["left"]
        width = min(16, left)
        cumulative = np.cumsum(seen[: 1 << width])
        place = int(np.searchsorted(cumulative, known["rank"]))
        inside = int(seen[place])
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
        return next_known, False

    def tell(self, known: Any, chunk: Chunk) -> Cut:
        if "prefix" not in known:
            return Cut(0, -1, everything="everything" in known, nothing="nothing" in known)
        if known["keep"] < 0:
            return Cut(known["prefix"], -1)
        before, here = known["starts"][str(chunk.index)]
        return Cut(known["prefix"], max(0, min(here, known["keep"] - before)))
