"""Electing a sign for each parameter and averaging the entries that agree: the second half of TIES-Merging (P10)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Literal

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit
from nett.core.passes import Total

ZeroSign = Literal["majority", "positive"]


@jit
def _add(total: Array, delta: Array, weight: Any) -> None:
    for i in range(delta.size):
        total[i] += weight * delta[i]


@jit
def _sum_of_signs(votes: Array) -> int:
    total = np.int64(0)
    for i in range(votes.size):
        total += np.int64(votes[i] > 0) - np.int64(votes[i] < 0)
    return int(total)


@jit
def _gather(votes: Array, delta: Array, weight: Any, at_zero: Any, flip: bool, total: Array, divisor: Array) -> None:
    for i in range(delta.size):
        d = delta[i]
        vote = votes[i]
        if vote == 0:
            vote = at_zero
        agrees = (d > 0) if (vote > 0) != flip else (d < 0)
        w = weight if agrees else weight * 0
        total[i] += w * d
        divisor[i] += w


@jit
def _divide(total: Array, divisor: Array) -> None:
    for i in range(total.size):
        if divisor[i] != 0:
            total[i] /= divisor[i]


def elect_and_average(
    deltas: Sequence[Array],
    weights: Sequence[float],
    *,
    weight_in_election: bool,
    zero_sign: ZeroSign,
    normalize: bool,
    scope: Literal["tensor", "model"],
) -> Generator[Sequence[Total], list[Any], Array]:
    """Disjoint mean of trimmed task vectors (P10, algorithm 1, steps 2 and 3).

    The sign of a parameter is the sign of the sum of its entries (times their weights if ``weight_in_election``).
    Where that sum is exactly zero, ``majority`` takes the sign of the sum of all elected signs over ``scope``, as
    the authors do, and ``positive`` takes +. ``normalize`` divides by the weight of the entries that agree.
    """
    kind = deltas[0].dtype.type
    votes = np.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        _add(votes, delta, kind(weight if weight_in_election else 1.0))
    at_zero = 1.0
    if zero_sign == "majority" and len(deltas) > 1:
        (signs,) = yield [Total({"signs": _sum_of_signs(votes)}, scope=scope)]
        at_zero = float(np.sign(signs["signs"]))
    total, divisor = np.zeros_like(votes), np.zeros_like(votes)
    for delta, weight in zip(deltas, weights, strict=True):
        # A negative weight turns an entry's vote round, and so what it agrees with.
        _gather(votes, delta, kind(weight), kind(at_zero), weight_in_election and weight < 0, total, divisor)
    if normalize:
        _divide(total, divisor)
    return total
