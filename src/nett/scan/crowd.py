"""How several fine-tunes of one base get along: whose signs disagree, and what one vector for all would lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array, Dtype
from nett.core.jit import jit
from nett.core.moved import as_numbers
from nett.core.sweep import Fold

MASK_LAMBDA = 0.4  # the default of merge/tall_masks


@jit
def _crowd(deltas: Array, strictness: Any, counts: Array, lost: Array) -> None:
    tasks = deltas.shape[0]
    for i in range(deltas.shape[1]):
        total = np.float32(0)
        moving, up, down = 0, 0, 0
        for t in range(tasks):
            d = deltas[t, i]
            total += d
            up += d > 0
            down += d < 0
        moving = up + down
        if not np.isfinite(total):
            continue
        if moving >= 2:
            counts[0, 0] += 1
            counts[0, 1] += up > 0 and down > 0
        for t in range(tasks):
            d = deltas[t, i]
            if d != 0:
                counts[t + 1, 0] += 1
                counts[t + 1, 1] += (d > 0) == (total > 0) and total != 0
            rest = total - d
            rebuilt = total if abs(d) > strictness * abs(rest) else np.float32(0)
            miss = np.float64(rebuilt) - np.float64(d)
            lost[t] += miss * miss


@final
@dataclass(frozen=True)
class Crowded:
    """Sums over elements. Row 0 of ``counts``: moved by two or more, of those with opposing signs; row t + 1: moved
    by task t, of those in the direction of the sum. ``lost``: squared error of each task rebuilt by TALL-masks."""

    counts: Array
    lost: Array

    def __add__(self, other: Crowded) -> Crowded:
        return Crowded(self.counts + other.counts, self.lost + other.lost)

    @property
    def conflict(self) -> float:
        """Share of the elements moved by two or more fine-tunes that they move in opposite directions."""
        return float(self.counts[0, 1] / self.counts[0, 0]) if self.counts[0, 0] else 0.0

    def agreement(self, task: int) -> float:
        """Share of the task's moved elements that go in the elected direction, that of the sum (P10, step 2)."""
        moved, with_sum = self.counts[task + 1]
        return float(with_sum / moved) if moved else 1.0


@final
class Crowd(Fold):
    """Base first, then the fine-tunes, in one pass."""

    def __init__(self, dtypes: Sequence[Dtype]) -> None:
        self._dtypes = dtypes

    def look(self, pieces: Sequence[Array]) -> Crowded:
        base, *tuned = (as_numbers(p, d) for p, d in zip(pieces, self._dtypes, strict=True))
        deltas = np.stack([(t - base).astype(np.float32, copy=False) for t in tuned])
        seen = Crowded(np.zeros((len(tuned) + 1, 2), np.int64), np.zeros(len(tuned)))
        _crowd(deltas, np.float32(MASK_LAMBDA), seen.counts, seen.lost)
        return seen

    def join(self, before: Any, unit: Any) -> Any:
        return unit if before is None else before + unit
