"""In which order the units of a layer merge: clustering of their weights, the closest pair first (P38).

The repository of P38 sums the incoming weights of two merged units and takes the count-weighted mean of the outgoing
ones. For equal features ``f`` and a positively homogeneous activation that is the function that the count-weighted
mean of the incoming and the sum of the outgoing weights give, ``(f + f) (w_i + w_j) / 2 = f (w_i + w_j)``; the second
form needs no such activation and leaves the norms as they are, so it is the one that is written. Two distances:

``paper``: between the weights that the repository holds then, sums of incoming and means of outgoing ones. A cluster
moves away from its own members' copies as it grows (their sum is longer), so a third copy is not at distance zero.
``ward``: between the means of both, times ``2 c_i c_j / (c_i + c_j)`` for clusters of ``c`` members: what merging them
adds to the squared error, twice. Copies stay at distance zero however many have merged, and large clusters cost more.
(Means without that factor let one cluster take in all others: its mean is short, and so is near to everything.)

Either way the distances to a new cluster follow from the old ones in O(n) a merge (Lance and Williams).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit

TINY = float(np.finfo(np.float64).tiny)


@final
@dataclass(frozen=True, eq=False)
class FeatureTree:
    """The merges of one group, closest pair first. One tree serves every beta, since beta only says where to stop.

    pairs: ``[merges, 2]``, unit ``pairs[t, 1]`` (and what merged with it before) joins ``pairs[t, 0]``, the smaller.
    low, high: ``[merges]``, the smallest and the largest squared distance of the group just before.
    complete: whether all merges are there; otherwise those with ``low <= beta * high`` for the beta it was made for.
    """

    group: str
    size: int
    pairs: Array
    low: Array
    high: Array
    complete: bool

    def merges(self, beta: float, max_ratio: float = 1.0) -> int:
        """How many merges there are while ``low <= beta * high`` and less than ``max_ratio`` of the units are gone."""
        over = np.flatnonzero(self.low > beta * self.high)
        first = int(over[0]) if len(over) else len(self.pairs)
        return min(first, int(np.ceil(max_ratio * self.size)), self.size - 1)

    def labels(self, merges: int) -> Array:
        """``[size]``: the new unit of each old one after so many merges, numbered in the order of their first."""
        parent = np.arange(self.size)
        for i, j in self.pairs[:merges].tolist():
            parent[j] = i
        for unit in range(self.size):
            parent[unit] = parent[parent[unit]]  # parents are smaller and have been done
        return np.unique(parent, return_inverse=True)[1]

    def complexity(self, betas: Sequence[float]) -> list[float]:
        """The share of units that remain, for each beta (P38's layer-wise feature complexity)."""
        return [(self.size - self.merges(beta)) / self.size for beta in betas]


def feature_tree(
    group: str, distance: Array, *, beta: float, most: int | None = None, summed: tuple[Array, Array] | None = None
) -> FeatureTree:
    """The merges of a group from the squared distances of its units.

    Args:
        distance: ``[n, n]`` float64, symmetric; overwritten.
        beta: no merge is needed past the first with ``low > beta * high``.
        most: nor more than so many.
        summed: for the paper's distance, inner products of the weights that are summed and squared distances of those
            of which means are taken, ``[n, n]`` each and overwritten; without it the distance is ward's.
    """
    size = len(distance)
    wanted = size - 1 if most is None else min(most, size - 1)
    none = np.empty((0, 0))
    gram, means = summed if summed is not None else (none, none)
    pairs, low, high, done = _merges(distance, gram, means, wanted, beta)
    return FeatureTree(group, size, pairs[:done], low[:done], high[:done], done == size - 1)


@jit
def squared_distances(gram: Array, same: Array) -> None:
    """In place: ``[n, n]`` inner products become squared distances; zero exactly where ``same`` says equal."""
    size = len(gram)
    norms = np.empty(size)
    for i in range(size):
        norms[i] = gram[i, i]
    for i in range(size):
        gram[i, i] = 0.0
        for j in range(i + 1, size):
            value = norms[i] + norms[j] - 2 * gram[i, j]
            value = 0.0 if same[i] == same[j] else max(value, TINY)
            gram[i, j] = value
            gram[j, i] = value


@jit
def _scan(distance: Array, alive: Array, i: int, near: Array, far: Array, low: Array, high: Array) -> None:
    """The nearest and the farthest unit after ``i``; -1 where there is none."""
    near[i], far[i], low[i], high[i] = -1, -1, np.inf, -1.0
    for k in range(i + 1, len(distance)):
        if alive[k]:
            value = distance[i, k]
            if value < low[i]:
                near[i], low[i] = k, value
            if value > high[i]:
                far[i], high[i] = k, value


@jit
def _to_cluster(distance: Array, gram: Array, means: Array, alive: Array, count: Array, i: int, j: int) -> None:
    """The distances to the cluster of ``i`` and ``j``, in the row and column of ``i``; ``j`` is not alive any more."""
    between, total = distance[i, j], count[i] + count[j]
    if len(gram) == 0:
        for k in range(len(distance)):
            if alive[k] and k != i:
                value = (count[k] + count[i]) * distance[i, k] + (count[k] + count[j]) * distance[j, k]
                value = max((value - count[k] * between) / (count[k] + total), 0.0)
                distance[i, k] = distance[k, i] = value
        return
    a, b, apart = count[i] / total, count[j] / total, means[i, j]
    own = gram[i, i] + gram[j, j] + 2 * gram[i, j]
    for k in range(len(distance)):
        if alive[k] and k != i:
            gram[i, k] = gram[k, i] = gram[i, k] + gram[j, k]
            means[i, k] = means[k, i] = max(a * means[i, k] + b * means[j, k] - a * b * apart, 0.0)
            distance[i, k] = distance[k, i] = max(own + gram[k, k] - 2 * gram[i, k], 0.0) + means[i, k]
    gram[i, i] = own


@jit
def _merges(distance: Array, gram: Array, means: Array, wanted: int, beta: float) -> tuple[Array, Array, Array, int]:
    """Merges, and the extremes before each; of equal distances the first in the order of rows, then of columns."""
    size = len(distance)
    alive, count = np.ones(size, np.bool_), np.ones(size)
    near, far = np.empty(size, np.int64), np.empty(size, np.int64)
    low, high = np.empty(size), np.empty(size)
    pairs, lows, highs = np.empty((wanted, 2), np.int64), np.empty(wanted), np.empty(wanted)
    for i in range(size):
        _scan(distance, alive, i, near, far, low, high)
    for t in range(wanted):
        i, smallest, largest = -1, np.inf, -1.0
        for k in range(size):
            if alive[k]:
                if low[k] < smallest:
                    i, smallest = k, low[k]
                largest = max(largest, high[k])
        if i < 0 or smallest > beta * largest:
            return pairs, lows, highs, t
        j = near[i]
        pairs[t, 0], pairs[t, 1], lows[t], highs[t] = i, j, smallest, largest
        alive[j] = False
        _to_cluster(distance, gram, means, alive, count, i, j)
        count[i] += count[j]
        _scan(distance, alive, i, near, far, low, high)
        for k in range(j):
            if not alive[k] or k == i:
                continue
            if near[k] == j or far[k] == j or near[k] == i or far[k] == i:
                _scan(distance, alive, k, near, far, low, high)
            elif k < i:
                value = distance[k, i]
                if value < low[k] or (value == low[k] and i < near[k]):
                    near[k], low[k] = i, value
                if value > high[k]:
                    far[k], high[k] = i, value
    return pairs, lows, highs, wanted
