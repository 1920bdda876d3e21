"""What a change of element type makes of values: their new bytes, and what was lost, measured while they pass.

Rounding to nearest moves a value x by at most max(u |x|, s / 2): u is the type's unit roundoff, s its smallest
subnormal (IEEE 754; OCP 8-bit floating point). That is the bound; ``share`` says how much of it was used.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import final

import numpy as np

from nett.core.checkpoint import Checkpoint
from nett.core.dtypes import Array, Dtype, decode, encode
from nett.core.finite import count_non_finite
from nett.core.jit import jit
from nett.core.sums import dot, squared_distance


@final
@dataclass(frozen=True)
class Grid:
    """Which numbers a type holds: ``fraction`` bits behind the point, exponents ``low`` to ``high``."""

    fraction: int
    low: int
    high: int

    @property
    def roundoff(self) -> float:
        return 2.0 ** -(self.fraction + 1)

    @property
    def normal(self) -> float:
        """The smallest number of full precision."""
        return 2.0**self.low

    @property
    def half_step(self) -> float:
        """Half of the smallest subnormal; for F64 that would be 0, and nothing is rounded to F64."""
        return 2.0 ** (self.low - self.fraction - 1)

    def holds(self, other: Grid) -> bool:
        """Whether every number of ``other`` is one of these."""
        steps = self.low - self.fraction <= other.low - other.fraction
        return steps and self.fraction >= other.fraction and self.low <= other.low and self.high >= other.high


GRIDS = {
    "F64": Grid(52, -1022, 1023),
    "F32": Grid(23, -126, 127),
    "F16": Grid(10, -14, 15),
    "BF16": Grid(7, -126, 127),
    "F8_E4M3": Grid(3, -6, 8),
    "F8_E5M2": Grid(2, -14, 15),
}


def widens(old: Dtype, new: Dtype) -> bool:
    """Whether ``new`` holds every value of ``old``."""
    return old == new or (old.is_float and new.is_float and GRIDS[new.name].holds(GRIDS[old.name]))


@final
@dataclass(frozen=True)
class Loss:
    """What became of some elements. Distances leave out what was not finite before."""

    elements: int = 0
    changed: int = 0  # whose value is another now, in any bit
    nonfinite: int = 0  # NaN or infinite before
    overflowed: int = 0  # finite before, not finite now
    underflowed: int = 0  # not zero before, zero now
    max_abs: float = 0.0  # largest |new - old|
    max_rel: float = 0.0  # largest |new - old| / |old| among those of the new type's full precision
    share: float = 0.0  # largest |new - old| / bound
    distance: float = 0.0  # sum of (new - old)^2
    size: float = 0.0  # sum of old^2

    def __add__(self, other: Loss) -> Loss:
        """Both together."""
        mine, theirs = asdict(self), asdict(other)
        largest = ("max_abs", "max_rel", "share")
        return Loss(**{k: max(v, theirs[k]) if k in largest else v + theirs[k] for k, v in mine.items()})

    @property
    def relative_l2(self) -> float:
        return float((self.distance / self.size) ** 0.5) if self.distance and self.size else 0.0


@jit
def _compare(old: Array, new: Array, old_bits: Array, new_bits: Array, grid: Array, out: Array) -> None:
    changed, odd, over, under = 0, 0, 0, 0
    largest, relative, share = 0.0, 0.0, 0.0
    for i in range(old.size):
        if old_bits[i] == new_bits[i]:
            odd += not np.isfinite(old[i])
            continue
        changed += 1
        x, y = np.float64(old[i]), np.float64(new[i])
        if not np.isfinite(x):
            odd += 1
            continue
        if not np.isfinite(y):
            over += 1
            continue
        under += x != 0.0 and y == 0.0
        gap = abs(y - x)
        largest = max(largest, gap)
        if abs(x) >= grid[1]:
            relative = max(relative, gap / abs(x))
        share = max(share, gap / max(abs(x) * grid[0], grid[2]))
    out[0], out[1], out[2], out[3] = changed, odd, over, under
    out[4], out[5], out[6] = largest, relative, share


def lost(old: Array, new: Array, dtype: Dtype) -> Loss:
    """From the values ``old`` to ``new``, which were rounded to ``dtype``. Flat float32 or float64 arrays."""
    if old.dtype != new.dtype:
        old, new = old.astype(np.float64), new.astype(np.float64)
    bits = np.uint64 if old.dtype == np.float64 else np.uint32
    grid, out = GRIDS[dtype.name], np.empty(7)
    limits = np.array([grid.roundoff, grid.normal, grid.half_step])
    _compare(old, new, old.view(bits), new.view(bits), limits, out)
    counts, elements = [int(v) for v in out[:4]], old.size
    distance = size = 0.0
    if counts[1] or counts[2]:
        kept = np.isfinite(old) & np.isfinite(new)
        old, new = old[kept], new[kept]
    if counts[0]:
        distance = squared_distance(new, old)
    size = dot(old, old)
    changed, odd, over, under = counts
    return Loss(elements, changed, odd, over, under, float(out[4]), float(out[5]), float(out[6]), distance, size)


@final
@dataclass(frozen=True)
class Cast:
    """One tensor of ``checkpoint`` on its way to ``dtype``. ``computed``: its values are not stored but made (an
    adapter's sums), so that even its own type rounds them."""

    checkpoint: Checkpoint
    name: str
    dtype: Dtype
    computed: bool = False

    def piece(self, start: int, stop: int) -> tuple[Array, Loss]:
        """Elements ``start:stop`` as raw numbers of the new type, and what was lost."""
        info = self.checkpoint.tensors[self.name]
        if not info.dtype.is_float or (info.dtype == self.dtype and not self.computed):
            raw = self.checkpoint.read(self.name, start, stop)
            odd = count_non_finite(decode(raw, self.dtype)) if self.dtype.is_float else 0
            return raw, Loss(elements=stop - start, nonfinite=odd)
        values = self.checkpoint.values(self.name, start, stop)
        raw = encode(values, self.dtype)
        return raw, lost(values, decode(raw, self.dtype), self.dtype)
