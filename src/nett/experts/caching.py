"""A cache of experts: which stay in memory when others are needed, for models that run and for traces of what they chose.

A step asks for some experts, each once. Those that are there are hits and are served first; the others are loaded, the
least worth keeping before the others, each into a free slot or in place of the expert that is least worth keeping,
where the experts of the step itself come last. What is worth keeping is the policy's word, among equals the time of the
last use, and then the higher number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit

Policy = Literal["lru", "lfu", "segment"]
POLICIES: Mapping[str, int] = {"lru": 0, "lfu": 1, "segment": 2, "foresight": 3, "optimum": 4}
ONLINE = ("lru", "lfu", "segment")  # those that do not look ahead
_LATER = 1 << 31  # above all steps and counts


@jit
def _step(
    policy: int, now: int, wanted: Array, held: Array, slot: Array, last: Array, count: Array, recent: Array,
    ahead: Array, ring: Array, order: Array, places: Array,
) -> int:  # fmt: skip
    """One step: fills ``order`` (indices into ``wanted``, hits first) and ``places`` (the slot of each), and returns how many
    are hits. held [slots]: expert in a slot, or -1; slot [E]: where an expert is, or -1."""
    span, number = ring.shape[0], wanted.size
    if span:
        row = now % span
        for e in range(slot.size):
            recent[e] -= ring[row, e]
            ring[row, e] = 0
    for i in range(number):
        e = wanted[i]
        last[e] = now + 1
        count[e] += 1
        if span:
            ring[now % span, e] = 1
            recent[e] += 1
    key = np.empty(slot.size, np.int64)
    for e in range(slot.size):
        worth = last[e] if policy == 0 else count[e] if policy == 1 else recent[e] if policy == 2 else ahead[e]
        key[e] = worth * _LATER + last[e]
    hits = 0
    for i in range(number):
        if slot[wanted[i]] >= 0:
            order[hits] = i
            places[hits] = slot[wanted[i]]
            hits += 1
    at = hits
    for i in range(number):  # the missing, sorted by insertion: they are few
        if slot[wanted[i]] < 0:
            j = at
            while j > hits and key[wanted[order[j - 1]]] > key[wanted[i]]:
                order[j] = order[j - 1]
                j -= 1
            order[j] = i
            at += 1
    own = np.zeros(slot.size, np.int64)
    for i in range(number):
        own[wanted[i]] = 1
    for j in range(hits, number):
        e = wanted[order[j]]
        best = -1
        for s in range(held.size):
            if held[s] < 0:
                best = s
                break
            if best < 0 or own[held[s]] < own[held[best]]:
                best = s
            elif own[held[s]] == own[held[best]]:
                a, b = key[held[s]], key[held[best]]
                if a < b or (a == b and held[s] < held[best]):
                    best = s
        if held[best] >= 0:
            slot[held[best]] = -1
        held[best] = e
        slot[e] = best
        places[j] = best
    return hits


@jit
def _hits(wanted: Array, coming: Array, experts: int, size: int, policy: int, span: int, found: Array) -> None:
    """All steps of a trace, ``wanted`` [T, W] with -1 behind each row's experts; ``coming``: the step at which each is wanted
    next. Adds hits to found[0], and first uses to found[1]."""
    held, slot = np.full(size, -1, np.int64), np.full(experts, -1, np.int64)
    last, count = np.zeros(experts, np.int64), np.zeros(experts, np.int64)
    recent, ahead = np.zeros(experts, np.int64), np.zeros(experts, np.int64)
    ring = np.zeros((span if policy == 2 else 0, experts), np.int64)
    steps, width = wanted.shape
    order, places = np.empty(width, np.int64), np.empty(width, np.int64)
    if policy == 3:  # uses in the steps to come, the present one among them
        for t in range(min(span, steps)):
            for j in range(width):
                if wanted[t, j] >= 0:
                    ahead[wanted[t, j]] += 1
    for t in range(steps):
        number = 0
        while number < width and wanted[t, number] >= 0:
            e = wanted[t, number]
            found[1] += count[e] == 0
            if policy == 4:
                ahead[e] = -coming[t, number]
            number += 1
        found[0] += _step(policy, t, wanted[t, :number], held, slot, last, count, recent, ahead, ring, order, places)
        if policy == 3:
            for j in range(number):
                ahead[wanted[t, j]] -= 1
            if t + span < steps:
                for j in range(width):
                    if wanted[t + span, j] >= 0:
                        ahead[wanted[t + span, j]] += 1


class Rate(NamedTuple):
    """Of a trace and a cache: requests, hits, and first uses, which no cache that starts empty can hit."""

    requests: int
    hits: int
    first: int

    @property
    def share(self) -> float:
        """Hits among requests, 0 to 1."""
        return self.hits / max(1, self.requests)


def rate_of(wanted: Array, experts: int, size: int, policy: str, span: int = 16) -> Rate:
    """How often a cache of ``size`` of a layer's ``experts`` is hit, from empty.

    wanted: integers [steps, W], the experts of each step, none twice, -1 behind them. policy: lru, lfu (uses so far),
    segment (uses in the last ``span`` steps), foresight (uses in the next ``span`` steps: P17's segment cache), or optimum (the
    expert that is wanted again last goes: Belady's, which no policy beats as long as a step's experts fit in together).
    """
    wanted = np.ascontiguousarray(wanted, np.int64)
    found = np.zeros(2, np.int64)
    _hits(wanted, next_uses(wanted), experts, min(size, experts), POLICIES[policy], span, found)
    return Rate(int((wanted >= 0).sum()), int(found[0]), int(found[1]))


def next_uses(wanted: Array) -> Array:
    """For each entry of ``wanted`` [steps, W] the next step that wants the same expert, or one behind all steps."""
    steps, width = wanted.shape
    made = np.full(wanted.size, steps, np.int64)
    flat, at = wanted.reshape(-1), np.repeat(np.arange(steps), width)
    order = np.argsort(flat, kind="stable")
    same = flat[order[1:]] == flat[order[:-1]]
    made[order[:-1][same]] = at[order[1:][same]]
    return made.reshape(steps, width)


@final
class Cache:
    """What a running layer keeps: ``size`` slots for its ``experts``, by a policy that does not look ahead."""

    def __init__(self, experts: int, size: int, policy: Policy = "lru", span: int = 16) -> None:
        self.requests = self.hits = self._now = 0
        self._policy = POLICIES[policy]
        self.held, self._slot = np.full(min(size, experts), -1, np.int64), np.full(experts, -1, np.int64)
        self._last, self._count, self._recent, self._ahead = (np.zeros(experts, np.int64) for _ in range(4))
        self._ring = np.zeros((span if policy == "segment" else 0, experts), np.int64)

    def step(self, wanted: Sequence[int]) -> list[tuple[int, int, bool]]:
        """The experts of a step in the order in which they are to be served: (expert, slot, whether it must be loaded into
        it first). A slot may serve several, one after the other."""
        asked = np.asarray(wanted, np.int64)
        order, places = np.empty(asked.size, np.int64), np.empty(asked.size, np.int64)
        hits = _step(self._policy, self._now, asked, self.held, self._slot, self._last, self._count, self._recent,
                     self._ahead, self._ring, order, places)  # fmt: skip
        self._now, self.requests, self.hits = self._now + 1, self.requests + asked.size, self.hits + hits
        return [(int(asked[i]), int(s), j >= hits) for j, (i, s) in enumerate(zip(order, places, strict=True))]
