"""A prompt in parts, and of each part which tokens are computed now: those of chunks that no store has, and of stored ones
those that depend on what stood before them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from nett.cache.chunk_files import chunk_name
from nett.cache.chunk_scores import context_impact, disorder, fix_overhead, most_dependent, overlap
from nett.cache.chunk_store import Variant, chunk_store
from nett.core.dtypes import Array

_NONE = np.empty(0, np.int64)


@final
@dataclass(eq=False)
class Part:
    """The system's text or a chunk, from place ``start`` on. variant: what is used of the store, None where the part is
    computed wholly; chosen int ``[m]``: which of its tokens are computed, ascending; overhead: its CFO; exact: its keys
    and values are those of full recomputation."""

    name: str
    ids: tuple[int, ...]
    start: int
    variant: Variant | None = None
    chosen: Array = field(default_factory=lambda: _NONE)
    overhead: float = 1.0
    exact: bool = False
    same: bool = False  # the variant was computed behind exactly this text
    told: dict[str, float] = field(default_factory=dict)
    uncounted: frozenset[str] = frozenset()  # chunks whose attention does not count

    @property
    def end(self) -> int:
        return self.start + len(self.ids)

    def as_json(self) -> dict[str, object]:
        state = "new" if self.variant is None else "as it was" if not len(self.chosen) else "partly"
        tier = None if self.variant is None else "memory" if self.variant.pairs is not None else "disk"
        moved = 0 if self.variant is None else self.start - self.variant.told.start
        return {
            "chunk": self.name, "tokens": len(self.ids), "computed": len(self.chosen), "state": state, "tier": tier,
            "moved": moved, "cfo": self.overhead, "same_context": self.same,
            "exact": self.exact, **self.told,
        }  # fmt: skip


def planned(
    store: chunk_store,
    system: Sequence[int],
    chunks: Sequence[Sequence[int]],
    *,
    by: str,
    alpha: float,
    share: float,
    renew: float,
    sink: bool,
    seed: int,
) -> list[Part]:
    """The parts of a prompt in their order, without its question; see :func:`nett.cache.cache_craft`. Which tokens
    ``cacheblend`` computes is not known yet: as many as are ``chosen`` here."""
    parts: list[Part] = []
    rng = np.random.default_rng(seed)
    place = 0
    for number, ids in enumerate([system, *chunks] if system else list(chunks)):
        part = Part(chunk_name(ids), tuple(ids), place)
        before = tuple(p.name for p in parts)
        known = _same_context(store, part, before)
        if by == "full" or (by == "prefix" and not (known and all(p.variant is not None for p in parts))):
            known = None
        elif known is None and by != "prefix" and not (number == 0 and system):
            uncounted = {parts[0].name} if system and not sink else set()
            _take_nearest(store, part, [n for n in before if n not in uncounted], uncounted, alpha)
        if known is not None:
            part.variant, part.overhead, part.same = known, 0.0, True
        if part.variant is not None and share == 0 and by != "reuse" and part.overhead >= renew:
            part.variant = None
        part.chosen = _chosen(part, by, share, rng)
        if share == 0 and len(part.chosen) == len(part.ids):
            part.variant = None  # nothing of it is left
        part.exact = all(p.exact for p in parts) and (part.variant is None or part.same)
        parts.append(part)
        place = part.end
    return parts


def _same_context(store: chunk_store, part: Part, before: tuple[str, ...]) -> Variant | None:
    """What was computed behind exactly the same text."""
    fits = (v for v in store.of(part.name) if v.told.exact and v.told.start == part.start)
    return next((v for v in fits if v.told.attended.before == before), None)


def _take_nearest(store: chunk_store, part: Part, before: list[str], uncounted: set[str], alpha: float) -> None:
    """The variant of least CFO, or of those the one that was used last."""
    best: tuple[float, int] | None = None
    for variant in store.of(part.name):
        attended = variant.told.attended.without(uncounted)
        overhead = fix_overhead(attended, before, alpha)
        if best is None or (overhead, -variant.used) < best:
            best = overhead, -variant.used
            part.variant, part.overhead = variant, overhead
            part.told = {
                "cci": context_impact(attended), "beta": overlap(attended, before), "gamma": disorder(attended.before, before),
            }  # fmt: skip
            part.uncounted = frozenset(uncounted)


def _chosen(part: Part, by: str, share: float, rng: np.random.Generator) -> Array:
    n = len(part.ids)
    if part.variant is None:
        return np.arange(n)
    count = math.ceil((share or part.overhead) * n - 1e-9)
    if by in ("reuse", "prefix") or part.same or not count:
        return _NONE
    if by == "first":
        return np.arange(count)
    if by == "random":
        return np.sort(rng.choice(n, count, replace=False))
    return most_dependent(part.variant.told.attended.without(part.uncounted), count)
