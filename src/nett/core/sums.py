"""Sums in float64 with a fixed order of addition: the same bits on any machine and any number of threads.

Sixteen lanes, so that the compiler can use vector registers without being allowed to reorder anything. A lane takes
four elements before it goes back to memory: the lanes are the slow part otherwise.
"""

from __future__ import annotations

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit

_LANES = 16
_STEP = 4 * _LANES


@jit
def _dot(a: Array, b: Array) -> float:
    lanes = np.zeros(_LANES, np.float64)
    whole = a.size // _LANES * _LANES
    steps = a.size // _STEP * _STEP
    for i in range(0, steps, _STEP):
        for j in range(_LANES):
            k = i + j
            lane = lanes[j] + np.float64(a[k]) * np.float64(b[k])
            lane += np.float64(a[k + 16]) * np.float64(b[k + 16])
            lane += np.float64(a[k + 32]) * np.float64(b[k + 32])
            lane += np.float64(a[k + 48]) * np.float64(b[k + 48])
            lanes[j] = lane
    for i in range(steps, whole, _LANES):
        for j in range(_LANES):
            lanes[j] += np.float64(a[i + j]) * np.float64(b[i + j])
    total = 0.0
    for j in range(_LANES):
        total += lanes[j]
    for i in range(whole, a.size):
        total += np.float64(a[i]) * np.float64(b[i])
    return total


@jit
def _distance(a: Array, b: Array) -> float:
    lanes = np.zeros(_LANES, np.float64)
    whole = a.size // _LANES * _LANES
    steps = a.size // _STEP * _STEP
    for i in range(0, steps, _STEP):
        for j in range(_LANES):
            k = i + j
            d0 = np.float64(a[k]) - np.float64(b[k])
            d1 = np.float64(a[k + 16]) - np.float64(b[k + 16])
            d2 = np.float64(a[k + 32]) - np.float64(b[k + 32])
            d3 = np.float64(a[k + 48]) - np.float64(b[k + 48])
            lanes[j] = (((lanes[j] + d0 * d0) + d1 * d1) + d2 * d2) + d3 * d3
    for i in range(steps, whole, _LANES):
        for j in range(_LANES):
            d = np.float64(a[i + j]) - np.float64(b[i + j])
            lanes[j] += d * d
    total = 0.0
    for j in range(_LANES):
        total += lanes[j]
    for i in range(whole, a.size):
        d = np.float64(a[i]) - np.float64(b[i])
        total += d * d
    return total


def dot(a: Array, b: Array) -> float:
    """Sum of a * b over all elements."""
    return float(_dot(np.ascontiguousarray(a).ravel(), np.ascontiguousarray(b).ravel()))


def squared_distance(a: Array, b: Array) -> float:
    """Sum of (a - b)^2 over all elements."""
    return float(_distance(np.ascontiguousarray(a).ravel(), np.ascontiguousarray(b).ravel()))
