"""Sums in float64 with a fixed order of addition: the same bits on any machine and any number of threads.

Sixteen lanes, so that the compiler can use vector registers without being allowed to reorder anything.
"""

from __future__ import annotations

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit

_LANES = 16


@jit
def _dot(a: Array, b: Array) -> float:
    lanes = np.zeros(_LANES, np.float64)
    whole = a.size // _LANES * _LANES
    for i in range(0, whole, _LANES):
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
    for i in range(0, whole, _LANES):
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
