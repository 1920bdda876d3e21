"""How local a routing is (P17): how well a fixed set of experts serves a run of tokens (SRP), and how often a cache that
knows what the next tokens choose would be hit (SCH).

Everything is counted sequence by sequence, in integers, so that texts of any length add up in the same memory.
"""

from __future__ import annotations

from math import lgamma
from typing import NamedTuple

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit


class Fit(NamedTuple):
    """The best fixed sets of experts. ``value``: SRP, the F1 score of what is in the set against what is chosen, 0 to 1;
    ``size``: of the sets, as a multiple of the experts that are chosen; ``least``: of how many of a segment's tokens an expert
    must be chosen to be in its set."""

    value: float
    size: float
    least: int


@jit
def segment_counts(chosen: Array, length: int, by_expert: Array, pooled: Array) -> None:
    """Add to ``by_expert[e, c]`` (int64 ``[E, length + 1]``), and for all experts together to ``pooled[c]``, the number of
    segments of ``length`` neighbouring tokens in which c tokens chose e; segments begin at every token.

    chosen: integers ``[T, k]``, the experts of each token, none twice. A step costs 2k, whatever E is: an expert's count is
    added when it changes, for as many segments as it held.
    """
    tokens, width = chosen.shape
    segments = tokens - length + 1
    if segments < 1:
        return
    experts = by_expert.shape[0]
    count, since = np.zeros(experts, np.int64), np.zeros(experts, np.int64)
    for i in range(length):
        for j in range(width):
            count[chosen[i, j]] += 1
    for start in range(1, segments):
        for j in range(width):
            e = chosen[start - 1, j]
            by_expert[e, count[e]] += start - since[e]
            pooled[count[e]] += start - since[e]
            since[e] = start
            count[e] -= 1
        for j in range(width):
            e = chosen[start + length - 1, j]
            by_expert[e, count[e]] += start - since[e]
            pooled[count[e]] += start - since[e]
            since[e] = start
            count[e] += 1
    for e in range(experts):
        by_expert[e, count[e]] += segments - since[e]
        pooled[count[e]] += segments - since[e]


@jit
def cache_hits(chosen: Array, ahead: int, hits: Array) -> None:
    """Add to ``hits[s]`` (int64 ``[E]``) the choices that are hits in a cache of s + 1 experts and none in a smaller one.

    chosen: integers ``[T, k]``. Where a place is needed, the expert leaves that the next ``ahead`` tokens choose least often
    (the present one among them), and among equals the one that was chosen longest ago; 0 is LRU. All of a token's experts
    are looked for before one is loaded. The first use of an expert is a hit as long as the cache has never been full:
    filling it is free. One pass serves all sizes, since what a cache holds is held by every larger one (Mattson's stack).
    """
    tokens, width = chosen.shape
    experts = hits.shape[0]
    stack, place = np.empty(experts, np.int64), np.full(experts, -1, np.int64)
    # What an expert in the stack is worth: how often it is to come, above when it was last chosen; beside it, so that the way
    # down the stack reads neighbours.
    worth, own = np.empty(experts, np.int64), np.zeros(experts, np.int64)
    coming = 1 << 40
    seen = clock = 0
    for i in range(min(ahead, tokens)):
        for j in range(width):
            own[chosen[i, j]] += coming
    for i in range(tokens):
        first = seen
        for j in range(width):
            e = chosen[i, j]
            if place[e] < 0:
                hits[first] += 1
                first += 1
            else:
                hits[place[e]] += 1
        for j in range(width):
            e = chosen[i, j]
            depth = place[e]
            if depth < 0:
                depth = seen
                seen += 1
            if depth > 0:
                carried, value = stack[0], worth[0]
                for at in range(1, depth):
                    if value > worth[at]:
                        carried, stack[at] = stack[at], carried
                        value, worth[at] = worth[at], value
                        place[stack[at]] = at
                stack[depth], worth[depth] = carried, value
                place[carried] = depth
            clock += 1
            own[e] = own[e] // coming * coming + clock - (coming if ahead > 0 else 0)
            stack[0], worth[0] = e, own[e]
            place[e] = 0
        if ahead > 0 and i + ahead < tokens:
            for j in range(width):
                e = chosen[i + ahead, j]
                own[e] += coming
                if place[e] >= 0:
                    worth[place[e]] += coming


@jit
def add_choices(chosen: Array, weights: Array, counts: Array, mass: Array, together: Array) -> None:
    """Add the choices of some tokens: ``counts`` int64 ``[E]``, ``mass`` float64 ``[E]`` (the router's weights), and
    ``together`` int64 ``[E, E]`` (tokens that chose both; the diagonal is ``counts``)."""
    tokens, width = chosen.shape
    for i in range(tokens):
        for j in range(width):
            e = chosen[i, j]
            counts[e] += 1
            mass[e] += weights[i, j]
            for other in range(width):
                together[e, chosen[i, other]] += 1


def best_fit(counts: Array) -> Fit:
    """SRP of a pool of experts. counts ``[n + 1]``: (segment, expert) pairs in which c of the n tokens chose the expert.

    For every segment the set of experts is fixed: those that at least t of its tokens choose; t is the same everywhere and
    the best that there is. F1(t) = 2 matches / (predicted + chosen).
    """
    score, size = _scores(np.asarray(counts)[None])
    least = int(np.argmax(score[0]))
    return Fit(float(score[0, least]), float(size[0, least]), least)


def fits(counts: Array) -> Array:
    """float64 ``[pools]``: the values of :func:`best_fit` of many pools. counts ``[pools, n + 1]``."""
    return np.asarray(_scores(counts)[0].max(axis=1))


def chance_fit(shares: Array, length: int) -> float:
    """What :func:`best_fit` would give if every token chose anew, each expert with its own share (``[E]``, of the tokens that
    choose it), whatever its neighbours chose: SRP that comes of uneven use alone."""
    share = np.clip(np.asarray(shares, np.float64), 1e-300, 1 - 1e-16)[:, None]
    times = np.arange(length + 1)
    ways = np.array([lgamma(length + 1) - lgamma(c + 1) - lgamma(length - c + 1) for c in times])
    odds = np.exp(ways + times * np.log(share) + (length - times) * np.log1p(-share))
    return best_fit(odds.sum(0)).value


def _scores(counts: Array) -> tuple[Array, Array]:
    """For each pool and every t: F1, and what the sets hold as a multiple of what is chosen; 0 where nothing is chosen."""
    length = counts.shape[1] - 1
    some = counts.astype(np.float64)
    matches = np.cumsum((some * np.arange(length + 1))[:, ::-1], axis=1)[:, ::-1]
    held = length * np.cumsum(some[:, ::-1], axis=1)[:, ::-1]
    chosen = matches[:, :1]
    score = np.divide(2 * matches, held + chosen, out=np.zeros_like(matches), where=chosen > 0)
    return score, np.divide(held, chosen, out=np.zeros_like(held), where=chosen > 0)


def rates(hits: Array) -> Array:
    """float64 ``[E]``: the share of choices that are hits, for caches of 1 to E experts."""
    return np.cumsum(hits, dtype=np.float64) / max(1, int(hits.sum()))


def knee(rate: Array, chosen: int) -> int:
    """The size of cache, from ``chosen`` to E, beyond which another expert adds less than it does on average: where the rate
    is furthest above the straight line between the two ends."""
    experts = rate.size
    sizes = np.arange(chosen, experts + 1)
    if sizes.size < 3:
        return int(sizes[0])
    own = rate[sizes - 1]
    line = own[0] + (own[-1] - own[0]) * (sizes - chosen) / (experts - chosen)
    return int(sizes[int(np.argmax(own - line))])


def enough(rate: Array, wanted: float) -> int:
    """The smallest cache that is hit so often; E where none smaller is."""
    reached = np.flatnonzero(rate >= wanted)
    return int(reached[0]) + 1 if reached.size else int(rate.size)
