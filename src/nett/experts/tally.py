"""What a routing adds up to: the choices of one mixture on any amount of text, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.experts.locality import add_choices, cache_hits, segment_counts

GROUPS = 20  # of windows, in turn: intervals come of leaving each out
LRU = 0  # the cache that does not look ahead


@final
class Tally:
    """Of one mixture of ``experts``, over ``texts`` texts. ``segments``: lengths in tokens.

    counts int64 and mass float64 ``[texts, E]``; together int64 ``[E, E]``, of all texts; by_expert: segment -> int64
    ``[E, segment + 1]``, of all texts; pooled: segment -> int64 ``[texts, GROUPS, segment + 1]``; hits: tokens that the cache
    looks ahead (or LRU) -> int64 ``[texts, GROUPS, E]``.
    """

    def __init__(self, experts: int, texts: int, segments: Sequence[int]) -> None:
        self.experts, self.segments = experts, tuple(segments)
        self.counts, self.mass = np.zeros((texts, experts), np.int64), np.zeros((texts, experts))
        self.together = np.zeros((experts, experts), np.int64)
        self.by_expert = {m: np.zeros((experts, m + 1), np.int64) for m in segments}
        self.pooled = {m: np.zeros((texts, GROUPS, m + 1), np.int64) for m in segments}
        self.hits = {m: np.zeros((texts, GROUPS, experts), np.int64) for m in (LRU, *segments)}

    def add(self, text: int, first: int, chosen: Array, weights: Array) -> None:
        """Some windows of a text, ``first`` the number of the first of them: integers and floats ``[n, T, k]``."""
        width = chosen.shape[-1]
        add_choices(
            chosen.reshape(-1, width), weights.reshape(-1, width), self.counts[text], self.mass[text], self.together
        )
        for number, window in enumerate(chosen, start=first):
            group = number % GROUPS
            for m in self.segments:
                segment_counts(window, m, self.by_expert[m], self.pooled[m][text, group])
            for m, hits in self.hits.items():
                cache_hits(window, m, hits[text, group])


def jackknife(sums: Array, statistic: Callable[[Array], Array]) -> list[float]:
    """[statistic of all, low, high]: 95 % interval by leaving out one group at a time. sums ``[groups, ...]``; groups that
    hold nothing do not count, and with fewer than two the interval is the value itself. statistic: of many sums at once,
    ``[n, ...]`` to ``[n]``."""
    sums = sums[sums.reshape(len(sums), -1).any(axis=1)]
    whole, count = sums.sum(0), len(sums)
    found = statistic(np.concatenate([whole[None], whole - sums]))
    value, others = float(found[0]), np.asarray(found[1:], np.float64)
    if count < 2:
        return [value, value, value]
    from scipy.special import stdtrit

    error = np.sqrt((count - 1) / count * np.square(others - others.mean()).sum())
    wide = float(stdtrit(count - 1, 0.975) * error)
    return [value, value - wide, value + wide]


def balance(counts: Any) -> dict[str, float]:
    """How evenly experts are used. counts ``[E]``. ``effective``: exp of the entropy of the shares, E where all are alike;
    ``largest``: share of the most used over the mean; ``spread``: standard deviation over the mean."""
    share = np.asarray(counts, np.float64)
    total = share.sum()
    if not total:
        return {"effective": 0.0, "largest": 0.0, "spread": 0.0}
    share = share / total
    some = share[share > 0]
    return {
        "effective": float(np.exp(-(some * np.log(some)).sum())),
        "largest": float(share.max() * share.size),
        "spread": float(share.std() * share.size),
    }


def divergence(first: Any, second: Any) -> float:
    """Jensen-Shannon divergence of two uses of the same experts, in bits: 0 where they are alike, 1 where they share none."""
    p, q = (np.asarray(c, np.float64) / max(1.0, float(np.sum(c))) for c in (first, second))
    middle = (p + q) / 2

    def against(one: Array) -> float:
        some = one > 0
        return float((one[some] * np.log2(one[some] / middle[some])).sum())

    return (against(p) + against(q)) / 2
