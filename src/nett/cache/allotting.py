"""How many continuations each leaf of a search gets: REBASE's shares, beams, and the best of each subtree."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt

import numpy as np

from nett.cache.search_tree import Node


def by_reward(scores: Sequence[float], width: int, temperature: float) -> list[int]:
    """REBASE: best first, n_i = ceil(width left * e_i / sum of the e that are left), e = exp(score / temperature).

    Returns: one number a leaf, in sum ``width``; of equal scores the first is served first.
    Source: P12 (spec of REBASE), Wu et al. 2024, arXiv:2408.00724.
    """
    values = np.asarray(scores, np.float64)
    order = np.argsort(-values, kind="stable")
    weights = np.exp((values[order] - values.max()) / temperature)
    left = np.cumsum(weights[::-1])[::-1]  # from the smallest up, so that the last share is exactly 1
    counts = [0] * len(values)
    for i, weight, rest in zip(order, weights, left, strict=True):
        share = width * weight / rest if rest else width  # where exp came to nothing
        counts[i] = min(width, ceil(share - 1e-9))  # rounding is no reason for one more
        width -= counts[i]
    return counts


def evenly(count: int, width: int) -> list[int]:
    """``width`` over ``count`` in parts that differ by at most one, the larger ones first."""
    return [width // count + (i < width % count) for i in range(count)]


def by_rank(scores: Sequence[float], width: int, keep: int) -> list[int]:
    """Beam search: the ``keep`` best leaves share the width."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")[: min(keep, width)]
    counts = [0] * len(scores)
    for i, n in zip(order, evenly(len(order), width), strict=True):
        counts[i] = n
    return counts


def by_subtree(leaves: Sequence[Node], scores: Sequence[float], width: int, whole: int, keep: int) -> list[int]:
    """Diverse verifier tree search: the best leaf of each subtree; the first ``whole`` steps are dealt to ``keep`` trees."""
    best: dict[int, int] = {}
    for i, leaf in enumerate(leaves):
        tree = leaf.path[0] * keep // whole
        if tree not in best or scores[i] > scores[best[tree]]:
            best[tree] = i
    chosen = sorted(best.values(), key=lambda i: (-scores[i], i))[:width]
    counts = [0] * len(leaves)
    for i, n in zip(chosen, evenly(len(chosen), width), strict=True):
        counts[i] = n
    return counts


def beams(width: int, keep: int) -> int:
    """Beams or subtrees that are kept: as asked for, or the root of the width, rounded up."""
    return min(width, keep or ceil(sqrt(width)))
