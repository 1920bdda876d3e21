"""How far a stored chunk depends on what stood before it, and what share of it a new context asks to compute again.

The attention statistics of a chunk are means over heads and layers, in which all formulas here are linear (P11, equations
3, 4 and 9 to 11); chunks are named by hashes of their tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from nett.core.dtypes import Array


@final
@dataclass(frozen=True)
class Attended:
    """Where the attention of a chunk's ``n`` tokens went when it was computed. before: the ``j`` chunks that stood before
    it, in order; lengths: their tokens; inter float ``[n, j]``: each token's attention to each of them; intra float
    ``[n]``: to the chunk itself."""

    before: tuple[str, ...]
    lengths: tuple[int, ...]
    inter: Array
    intra: Array

    def without(self, names: Collection[str]) -> Attended:
        """As if those chunks did not count."""
        stay = [k for k, name in enumerate(self.before) if name not in names]
        if len(stay) == len(self.before):
            return self
        before, lengths = (tuple(of[k] for k in stay) for of in (self.before, self.lengths))
        return Attended(before, lengths, self.inter[:, stay], self.intra)  # type: ignore[arg-type]


def context_impact(attended: Attended) -> float:
    """Cache context impact (equation 11), 1 / (1 + exp(-a / b)): from 0.5, where a chunk looked at nothing before it, up to
    1; a and b are the mean attention of a pair of tokens across chunks, and within the chunk (equation 9)."""
    n = len(attended.intra)
    across = attended.inter.sum(0, dtype=np.float64) / (n * np.asarray(attended.lengths, np.float64))
    within = float(attended.intra.sum(dtype=np.float64)) / n**2
    return 1.0 / (1.0 + math.exp(-min(700.0, float(across.sum()) / within)))


def overlap(attended: Attended, before: Sequence[str]) -> float:
    """Beta (equation 6): the share of the attention to earlier chunks that went to those that stand before it now too.

    A chunk that nothing stood before has no such share: 1 where nothing stands before it now, else 0.
    """
    if not attended.before:
        return float(not before)
    each = attended.inter.sum(0, dtype=np.float64)
    total = float(each.sum())
    now = set(before)
    kept = float(sum(e for e, name in zip(each, attended.before, strict=True) if name in now))
    return kept / total if total > 0 else 1.0


def disorder(old: Sequence[str], new: Sequence[str]) -> float:
    """Gamma (equation 7): the share of the pairs of common chunks whose order is another now; Kendall's tau distance."""
    place: dict[str, int] = {}
    for k, name in enumerate(new):
        place.setdefault(name, k)
    common = [place[name] for name in dict.fromkeys(old) if name in place]
    m = len(common)
    if m < 2:
        return 0.0
    turned = sum(common[i] > common[k] for i in range(m) for k in range(i + 1, m))
    return turned / (m * (m - 1) / 2)


def fix_overhead(attended: Attended, before: Sequence[str], alpha: float) -> float:
    """CFO (equations 8 and 12): alpha CCI (1 - beta (1 - gamma)), at most 1: the share of a chunk's tokens to compute
    again behind the chunks ``before``."""
    fits = overlap(attended, before) * (1 - disorder(attended.before, before))
    return min(1.0, alpha * context_impact(attended) * (1 - fits))


def most_dependent(attended: Attended, count: int) -> Array:
    """The ``count`` tokens that looked at earlier chunks most (equation 14), ascending; the earlier of equals."""
    order = np.argsort(-attended.inter.sum(1, dtype=np.float64), kind="stable")
    return np.sort(order[:count])
