"""The planner: which assets to keep and which to rebuild from others (the retention problem of R2D2, P03, for
any asset). Minimise bytes kept plus the weighted cost of rebuilding, under a limit on the time to rebuild.

This is the interface and a greedy solver with an honest bound; the exact solvers come with the store and the
lake, behind the same call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from nett.core.edge import Edge
from nett.core.errors import UsageError


@final
@dataclass(frozen=True)
class Limits:
    """``seconds``: the longest that rebuilding one asset may take; ``hops``: how many edges it may walk."""

    seconds: float = float("inf")
    hops: int = 1
    error: float = 0.0


@final
@dataclass(frozen=True)
class Retention:
    """What the planner chose. ``freed <= bound``: no plan under the same limits frees more than ``bound``."""

    taken: tuple[Edge, ...]
    kept: tuple[str, ...]
    freed: int
    bound: int

    @property
    def gap(self) -> float:
        """How far the plan may be from the best one, as a share of the bound."""
        return 0.0 if self.bound == 0 else 1 - self.freed / self.bound


def plan_retention(sizes: Mapping[str, int], edges: Sequence[Edge], limits: Limits | None = None) -> Retention:
    """Choose edges so that every asset is kept or rebuilt from kept ones, within the limits.

    ``sizes``: asset -> bytes. An edge with an unknown asset is a :class:`UsageError`. Greedy by bytes freed: an
    edge is taken if its target is still kept and needed by nobody beyond the hops allowed.
    """
    limits = limits or Limits()
    for edge in edges:
        for asset in (edge.target, *edge.sources):
            if asset not in sizes:
                raise UsageError(f"the edge {edge.kind} speaks of {asset!r}, which is not among the assets")
    usable = [
        e
        for e in edges
        if e.target not in e.sources and (e.seconds or 0.0) <= limits.seconds and (e.error or 0.0) <= limits.error
    ]
    depth = dict.fromkeys(sizes, 0)  # hops from what is kept
    spent = dict.fromkeys(sizes, 0.0)
    by_target: dict[str, Edge] = {}
    users: dict[str, list[str]] = {asset: [] for asset in sizes}

    def height(asset: str) -> int:
        return max((1 + height(user) for user in users[asset]), default=0)

    def longest(asset: str) -> float:
        return max(((by_target[user].seconds or 0.0) + longest(user) for user in users[asset]), default=0.0)

    def rests_on(asset: str, other: str) -> bool:
        edge = by_target.get(asset)
        return asset == other or (edge is not None and any(rests_on(s, other) for s in edge.sources))

    def relabel(asset: str) -> None:
        edge = by_target[asset]
        depth[asset] = 1 + max((depth[s] for s in edge.sources), default=0)
        spent[asset] = (edge.seconds or 0.0) + max((spent[s] for s in edge.sources), default=0.0)
        for user in users[asset]:
            relabel(user)

    for edge in sorted(usable, key=lambda e: (-e.bytes_freed, e.seconds or 0.0, e.target, e.sources)):
        if edge.target in by_target or any(rests_on(source, edge.target) for source in edge.sources):
            continue
        below = max((depth[s] for s in edge.sources), default=0)
        before = max((spent[s] for s in edge.sources), default=0.0)
        if below + 1 + height(edge.target) > limits.hops:
            continue
        if before + (edge.seconds or 0.0) + longest(edge.target) > limits.seconds:
            continue
        by_target[edge.target] = edge
        for source in edge.sources:
            users[source].append(edge.target)
        relabel(edge.target)
    best: dict[str, int] = {}
    for edge in usable:
        best[edge.target] = max(best.get(edge.target, 0), edge.bytes_freed)
    freed = sum(e.bytes_freed for e in by_target.values())
    return Retention(
        taken=tuple(by_target.values()),
        kept=tuple(asset for asset in sizes if asset not in by_target),
        freed=freed,
        bound=sum(best.values()),
    )
