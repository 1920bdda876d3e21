"""Whether two ways differ in what they get right, told from the same questions put to both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from nett.core.dtypes import Array


@final
@dataclass(frozen=True)
class McNemar:
    """``lost``: right by the first alone; ``gained``: right by the second alone. ``odds``: gained / lost, with its 95 %
    interval (0 and infinity where one of them is 0, NaN where both are). ``p``: exact and two-sided."""

    tasks: int
    lost: int
    gained: int
    odds: float
    low: float
    high: float
    p: float


def mcnemar(first: Array, second: Array) -> McNemar:
    """The exact test: of the questions on which they differ, either is as likely to be the one that is right.

    first, second: bool ``[n]``, whether each question was answered rightly. ValueError where they differ in length.
    """
    from scipy.stats import binomtest

    if first.shape != second.shape:
        raise ValueError(f"{first.shape} answers beside {second.shape}: they are not of the same questions")
    lost, gained = int(np.sum(first & ~second)), int(np.sum(~first & second))
    if lost + gained == 0:
        return McNemar(first.size, 0, 0, math.nan, math.nan, math.nan, 1.0)
    test = binomtest(gained, lost + gained, 0.5)
    ends = test.proportion_ci(0.95, method="exact")  # Clopper and Pearson
    odds, low, high = (_odds(float(share)) for share in (gained / (lost + gained), ends.low, ends.high))
    return McNemar(first.size, lost, gained, odds, low, high, float(test.pvalue))


def _odds(share: float) -> float:
    return share / (1 - share) if share < 1 else math.inf


def adjusted(values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Benjamini and Hochberg 1995: false discovery rate), in the order given."""
    from scipy.stats import false_discovery_control

    return [float(q) for q in false_discovery_control(list(values), method="bh")] if values else []
