"""What fine-tunes of one base do to the same elements: opposing signs, mass that cancels, largest entries in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array, Dtype
from nett.core.jit import jit
from nett.core.moved import as_numbers
from nett.core.sweep import Fold

BINS = 1 << 15  # the upper half of a positive float32's bits: a bin is at most 0.8 % wide


@jit
def _look(
    deltas: Array, bits: Array, sums: Array, dots: Array, both: Array, opposed: Array, unlike: Array, bins: Array
) -> None:
    tasks = deltas.shape[0]
    for i in range(deltas.shape[1]):
        finite = True
        for t in range(tasks):
            finite &= np.isfinite(deltas[t, i])
        if not finite:
            sums[5] += 1
            continue
        up, down = 0, 0
        mass, total = 0.0, 0.0
        for t in range(tasks):
            d = np.float64(deltas[t, i])
            if d > 0:
                up += 1
            elif d < 0:
                down += 1
            mass += abs(d)
            total += d
            if d != 0:
                bins[t, (bits[t, i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16)] += 1
        if up + down == 0:
            continue
        sums[2] += mass
        sums[4] += abs(total)
        if up + down < 2:
            for t in range(tasks):
                dots[t, t] += np.float64(deltas[t, i]) * np.float64(deltas[t, i])
            continue
        sums[0] += 1
        if up > 0 and down > 0:
            sums[1] += 1
            sums[3] += mass
        for s in range(tasks):
            a = np.float64(deltas[s, i])
            if a == 0:
                continue
            dots[s, s] += a * a
            for t in range(s + 1, tasks):
                b = np.float64(deltas[t, i])
                if b != 0:
                    dots[s, t] += a * b
                    both[s, t] += 1
                    opposed[s, t] += (a > 0) != (b > 0)
                    unlike[s, t] += a != b


@jit
def _top(deltas: Array, bits: Array, edges: Array, common: Array) -> None:
    tasks = deltas.shape[0]
    for i in range(deltas.shape[1]):
        for s in range(tasks):
            if not np.isfinite(deltas[s, i]) or (bits[s, i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16) < edges[s]:
                continue
            if deltas[s, i] == 0:
                continue
            for t in range(s, tasks):
                if (bits[t, i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16) >= edges[t] and deltas[t, i] != 0:
                    common[s, t] += 1


@final
@dataclass(frozen=True)
class Conflicts:
    """Sums over elements. ``sums``: moved by two or more; of those with opposing signs; mass (sum of |change|) of all;
    mass on elements with opposing signs; sum of |sum of changes|; elements that are not finite. ``dots``, ``both``,
    ``opposed``, ``unlike``: of pairs, above the diagonal: moved by both, in opposite directions, by unequal numbers. ``bins``: of each task's |change|."""

    size: int
    base: float  # squared norm of the base
    sums: Array
    dots: Array
    both: Array
    opposed: Array
    unlike: Array
    bins: Array

    def __add__(self, other: Conflicts) -> Conflicts:
        return Conflicts(
            self.size + other.size,
            self.base + other.base,
            self.sums + other.sums,
            self.dots + other.dots,
            self.both + other.both,
            self.opposed + other.opposed,
            self.unlike + other.unlike,
            self.bins + other.bins,
        )

    @property
    def sign_conflict(self) -> float | None:
        """Share of the elements moved by two or more fine-tunes that they move in opposite directions."""
        return float(self.sums[1] / self.sums[0]) if self.sums[0] else None

    @property
    def conflict_mass(self) -> float | None:
        """Share of the mass (sum of |change|) that lies on elements moved in opposite directions."""
        return float(self.sums[3] / self.sums[2]) if self.sums[2] else None

    @property
    def cancelled(self) -> float | None:
        """Share of the mass that is gone once the changes are summed."""
        return float(1 - self.sums[4] / self.sums[2]) if self.sums[2] else None

    def cosines(self) -> list[list[float | None]]:
        """Between task vectors; None where one is zero."""
        lengths = np.sqrt(np.diag(self.dots))
        full = self.dots + np.triu(self.dots, 1).T
        return [
            [
                float(full[s, t] / lengths[s] / lengths[t]) if lengths[s] and lengths[t] else None
                for t in range(len(lengths))
            ]
            for s in range(len(lengths))
        ]

    def pair_conflicts(self) -> list[list[float | None]]:
        """Of each pair, the share of the elements moved by both that they move in opposite directions."""
        both, opposed = self.both + self.both.T, self.opposed + self.opposed.T
        tasks = range(len(both))
        return [[float(opposed[s, t] / both[s, t]) if both[s, t] else None for t in tasks] for s in tasks]

    def still(self) -> list[int]:
        """The tasks that change nothing."""
        return [t for t, bins in enumerate(self.bins) if not bins.any()]

    def twins(self) -> list[tuple[int, int]]:
        """Pairs of tasks that make the same changes, element by element."""
        moved = self.bins.sum(axis=1)
        return [
            (s, t)
            for s in range(len(moved))
            for t in range(s + 1, len(moved))
            if moved[s] and moved[s] == moved[t] == self.both[s, t] and not self.unlike[s, t]
        ]

    def edges(self, share: float) -> tuple[Array, Array]:
        """For each task the lowest bin of its largest entries, at least ``share`` of all elements where so many moved;
        and how many entries that are: whole bins, so a few more."""
        from_top = np.cumsum(self.bins[:, ::-1], axis=1)[:, ::-1]
        wanted = np.minimum(np.ceil(share * self.size), from_top[:, 0])
        edges = np.count_nonzero(from_top >= np.maximum(wanted, 1)[:, None], axis=1) - 1
        edges = np.maximum(edges, 0)
        return edges.astype(np.int64), from_top[np.arange(len(edges)), edges]


@final
class Conflict(Fold):
    """Base first, then the fine-tunes, in one pass."""

    def __init__(self, dtypes: Sequence[Dtype]) -> None:
        self._dtypes = dtypes

    def look(self, pieces: Sequence[Array]) -> Conflicts:
        deltas = changes(pieces, self._dtypes)
        n, square = len(deltas), (len(deltas), len(deltas))
        seen = Conflicts(
            deltas.shape[1],
            _square(as_numbers(pieces[0], self._dtypes[0])),
            np.zeros(6),
            np.zeros(square),
            np.zeros(square, np.int64),
            np.zeros(square, np.int64),
            np.zeros(square, np.int64),
            np.zeros((n, BINS), np.int64),
        )
        _look(deltas, deltas.view(np.uint32), seen.sums, seen.dots, seen.both, seen.opposed, seen.unlike, seen.bins)
        return seen

    def join(self, before: Any, unit: Any) -> Any:
        return unit if before is None else before + unit


@final
class Common(Fold):
    """How many of the largest entries (from the ``edges`` of :meth:`Conflicts.edges` on) each two tasks share."""

    def __init__(self, dtypes: Sequence[Dtype], edges: Array) -> None:
        self._dtypes, self._edges = dtypes, edges.astype(np.uint32)

    def look(self, pieces: Sequence[Array]) -> Array:
        deltas = changes(pieces, self._dtypes)
        common = np.zeros((len(deltas), len(deltas)), np.int64)
        _top(deltas, deltas.view(np.uint32), self._edges, common)
        return common

    def join(self, before: Any, unit: Any) -> Any:
        return unit if before is None else before + unit


def _square(values: Array) -> float:
    wide = values.astype(np.float64)
    return float(np.square(wide[np.isfinite(wide)]).sum())


def changes(pieces: Sequence[Array], dtypes: Sequence[Dtype]) -> Array:
    """float32 ``[tasks, elements]``: what each fine-tune adds to the base, the first of the pieces."""
    base, *tuned = (as_numbers(p, d) for p, d in zip(pieces, dtypes, strict=True))
    return np.ascontiguousarray(np.stack([(t - base).astype(np.float32, copy=False) for t in tuned]))
