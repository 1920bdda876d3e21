"""Dropping entries of task vectors at random, the smaller the likelier: the first half of DELLA."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import UsageError
from nett.core.passes import Uniform
from nett.merge.dropping import Rescale
from nett.merge.norms import same_l1

_BLOCK = 1 << 16  # entries that are ranked at a time


def drop_by_rank(
    deltas: Sequence[Array], densities: Sequence[float], epsilons: Sequence[float], *, rescale: Rescale, seed: int
) -> Generator[Sequence[Any], list[Any], list[Array]]:
    """Keep each entry of a row with probability density - epsilon (smallest) to density + epsilon (largest), linear
    in its rank within the row (MagPrune). Returns flat task vectors.

    ``inverse-density`` divides what stays by its own probability, as the paper does; ``l1`` restores the L1 norm of
    the tensor, as mergekit does. Density 1 keeps everything, density 0 nothing.
    """
    for density, epsilon in zip(densities, epsilons, strict=True):
        if 0 < density < 1 and not 0 < density - epsilon <= density + epsilon < 1:
            raise UsageError(
                f"density {density:g} with epsilon {epsilon:g}: both density - epsilon and density + epsilon must lie "
                "between 0 and 1"
            )
    draws = yield [Uniform(delta.size, seed, stream) for stream, delta in enumerate(deltas)]
    found = []
    for delta, draw, density, epsilon in zip(deltas, draws, densities, epsilons, strict=True):
        kept = np.zeros(delta.size, delta.dtype)
        for rows, share in rank_shares(delta) if 0 < density < 1 else ():
            stays = (density - epsilon) + share * 2 * epsilon
            part = delta.ravel()[rows] * (draw[rows] < stays)
            kept[rows] = part / stays if rescale == "inverse-density" else part
        found.append(delta.ravel() if density >= 1 else kept)
    if rescale == "l1":
        found = yield from same_l1([delta.ravel() for delta in deltas], found)
    return found


def rank_shares(delta: Array) -> Iterator[tuple[slice, Array]]:
    """Of some rows at a time, where they lie in the flat array and the place of each |entry| in its row, from 0 to 1.

    A row is what has one index in the first dimension; the first of equal entries comes first.
    """
    rows = delta.reshape(delta.shape[0], -1) if delta.ndim > 1 else delta.reshape(1, -1)
    width = rows.shape[1]
    step = max(1, _BLOCK // max(1, width))
    for start in range(0, len(rows), step):
        order = np.argsort(np.abs(rows[start : start + step]), axis=1, kind="stable")
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(width)[None, :], axis=1)
        yield slice(start * width, (start + len(order)) * width), ranks.ravel() / max(1, width - 1)
