"""The retention problem: assets, ways to rebuild them, limits; and what makes a choice of ways legal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isfinite
from typing import Literal, final

from nett.core.edge import Edge
from nett.core.errors import UsageError

Solver = Literal["auto", "greedy", "ilp", "dyn-lin"]
Worth = Callable[[Edge], float]


@final
@dataclass(frozen=True)
class Limits:
    """``seconds``: the longest that rebuilding one asset may take, everything it rests on included; ``hops``: how
    many edges it may walk; ``error``: the largest error of an edge; ``byte_seconds``: the bytes that a second of
    rebuilding must save at least to be worth it (the price of computing in the price of storing)."""

    seconds: float = inf
    hops: float = 1
    error: float = 0.0
    byte_seconds: float = 0.0


@final
@dataclass(frozen=True)
class Way:
    """An edge as the solvers see it: the target is rebuilt from all ``sources`` in ``seconds`` and frees ``gain``."""

    target: str
    sources: tuple[str, ...]
    gain: float
    seconds: float
    edge: Edge


@final
@dataclass(frozen=True)
class Problem:
    """One independent part of a retention problem: no way leads from it into another part, or back."""

    ways: tuple[Way, ...]
    limits: Limits
    assets: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "assets", tuple(dict.fromkeys(a for w in self.ways for a in (w.target, *w.sources))))

    @cached_property
    def targets(self) -> Mapping[str, tuple[Way, ...]]:
        """The ways to each asset that has any, the largest gain first."""
        found: dict[str, list[Way]] = {}
        for way in sorted(self.ways, key=lambda w: (-w.gain, w.seconds, w.sources)):
            found.setdefault(way.target, []).append(way)
        return {target: tuple(ways) for target, ways in found.items()}

    @property
    def most(self) -> float:
        """A bound on any choice: every asset by its best way."""
        return gained([ways[0] for ways in self.targets.values()])

    @property
    def hops(self) -> int:
        """The hop limit as a number: a chain cannot be longer than the assets are many."""
        return int(min(self.limits.hops, len(self.assets) - 1))

    @property
    def longest(self) -> float:
        """A bound on the seconds of any chain: the limit, or all ways one after the other."""
        total = sum(max(w.seconds for w in ways) for ways in self.targets.values())
        return min(self.limits.seconds, total) if isfinite(self.limits.seconds) else total


def gained(ways: Iterable[Way]) -> float:
    """What a choice frees in all."""
    return sum(w.gain for w in ways)


def as_way(edge: Edge, limits: Limits, worth: Worth | None = None) -> Way | None:
    """The edge as a way; None where no legal choice could hold it, or where it gains nothing.

    ``worth``: what taking the edge gains, in the caller's unit; without it the bytes freed less the price of the
    seconds. A gain that is not finite is a :class:`UsageError`.
    """
    seconds = edge.seconds or 0.0
    beyond = seconds > limits.seconds or (edge.error or 0.0) > limits.error or limits.hops < 1
    if beyond or edge.target in edge.sources:
        return None
    gain = edge.bytes_freed - limits.byte_seconds * seconds if worth is None else worth(edge)
    if not isfinite(gain):
        raise UsageError(
            f"the edge {edge.kind} of {edge.target!r} from {', '.join(map(repr, edge.sources))} is worth {gain}; "
            "a finite number is needed"
        )
    return Way(edge.target, edge.sources, gain, seconds, edge) if gain > 0 else None


def usable(edges: Sequence[Edge], limits: Limits, worth: Worth | None = None) -> list[Way]:
    """The edges that a legal choice could hold, as ways; of several with equal target and sources, those that are
    not beaten in gain and seconds."""
    best: dict[tuple[str, frozenset[str]], list[Way]] = {}
    for edge in edges:
        way = as_way(edge, limits, worth)
        if way is None:
            continue
        rivals = best.setdefault((way.target, frozenset(way.sources)), [])
        if not any(r.gain >= way.gain and r.seconds <= way.seconds for r in rivals):
            rivals[:] = [r for r in rivals if r.gain > way.gain or r.seconds < way.seconds] + [way]
    return [way for rivals in best.values() for way in rivals]


def parts(ways: Sequence[Way], limits: Limits) -> list[Problem]:
    """The independent parts, by union of what ways connect."""
    parent: dict[str, str] = {}

    def root(asset: str) -> str:
        parent.setdefault(asset, asset)
        while parent[asset] != asset:
            parent[asset] = parent[parent[asset]]
            asset = parent[asset]
        return asset

    for way in ways:
        for source in way.sources:
            parent[root(source)] = root(way.target)
    grouped: dict[str, list[Way]] = {}
    for way in ways:
        grouped.setdefault(root(way.target), []).append(way)
    return [Problem(tuple(group), limits) for group in grouped.values()]
