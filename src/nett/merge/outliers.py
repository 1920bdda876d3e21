"""Cutting both tails off task vectors, tensor by tensor: the first half of Model Breadcrumbs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.ranks import Ranks


def without_tails(
    deltas: Sequence[Array], densities: Sequence[float], gammas: Sequence[float]
) -> Generator[Sequence[Any], list[Any], list[Array]]:
    """Drop the ``gamma`` share of largest entries, and so many of the smallest that ``density`` of all stay.

    Entries as large as the first or the last that stays, stay too. With density + gamma > 1 fewer of the largest
    are dropped, so that the density is kept. Density 1 drops nothing.
    """
    cut = [i for i, density in enumerate(densities) if density < 1]
    if not cut:
        return list(deltas)
    answers = yield [Ranks(np.abs(deltas[i]), Tails(densities[i], gammas[i]).ends) for i in cut]
    found = list(deltas)
    for i, (low, high) in zip(cut, answers, strict=True):
        size = np.abs(found[i])
        found[i] = found[i] * ((size >= low) & (size <= high)) if densities[i] > 0 else np.zeros_like(found[i])
    return found


class Tails:
    """The places of the smallest and the largest entry that stay."""

    def __init__(self, density: float, gamma: float) -> None:
        self.density, self.gamma = density, gamma

    def ends(self, size: int) -> tuple[int, int]:
        kept = max(1, int(self.density * size))
        below = max(0, size - kept - int(self.gamma * size))
        return below, below + kept - 1
