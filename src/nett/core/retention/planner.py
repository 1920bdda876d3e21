"""From assets and edges to a plan: independent parts, each solved exactly where that is possible."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import final

from nett.core.edge import Edge
from nett.core.errors import Refused, UsageError
from nett.core.retention.forest import is_forest, solve_forest
from nett.core.retention.greedy import greedy
from nett.core.retention.group import Expanded, Group, expand
from nett.core.retention.ilp import CHAIN_ASSETS, fits, solve_ilp
from nett.core.retention.one_hop import solve_one_hop
from nett.core.retention.problem import Limits, Problem, Solver, Way, Worth, as_way, gained, parts, usable

PART_SECONDS = 10.0  # of the solver, for one part


@final
@dataclass(frozen=True)
class Retention:
    """What the planner chose. ``freed <= bound``: no plan under the same limits frees more than ``bound``; the two
    are equal where the plan is proved to be the best. With ``byte_seconds``, both count the price of rebuilding; with
    ``worth``, both are in its unit, and are whole numbers only where there is none."""

    taken: tuple[Edge, ...]
    kept: tuple[str, ...]
    freed: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the plan may be from the best one, as a share of the bound."""
        return 0.0 if self.bound == 0 else 1 - self.freed / self.bound


def plan_retention(
    sizes: Mapping[str, int],
    edges: Sequence[Edge],
    limits: Limits | None = None,
    *,
    solver: Solver = "auto",
    seconds: float = 60.0,
    worth: Worth | None = None,
    keep: Collection[str] = (),
    groups: Sequence[Group] = (),
) -> Retention:
    """Choose edges so that every asset is kept or rebuilt from what is kept, within the limits, freeing most.

    Args:
        sizes: asset -> bytes.
        solver: ``greedy`` never proves anything and needs no scipy. ``auto`` solves each independent part exactly
            where it is a forest or small (HiGHS), and greedily beyond; with one hop the bound is then that of the
            linear relaxation, whose rounded answer is tried as a plan too. ``ilp`` gives every part to HiGHS, and
            ``dyn-lin`` to the programme for lines and trees, of one hop; either raises :class:`Refused` where a part
            is too large, or not a tree.
        seconds: of solving in all; the bound and the best plan found so far stand when they are over.
        worth: what taking an edge gains, finite, in the caller's unit (such as money: what keeping the target costs
            less what rebuilding it by this edge does); an edge that gains nothing is never taken. Without it, the
            bytes freed less ``limits.byte_seconds`` a second.
        keep: assets that stay, whatever that costs.
        groups: edges said by the group; see :class:`Group`.

    An edge with an unknown asset is a :class:`UsageError`, and so is an unknown asset to keep.
    Source: R2D2 (P03), Opt-Ret and Dyn-Lin, for one hop; Bhattacherjee et al. 2015, problem 6, beyond.
    """
    limits = limits or Limits()
    _check(sizes, edges, keep, groups)
    if solver == "dyn-lin" and limits.hops > 1:
        raise UsageError(f"solver dyn-lin: lines and trees of one hop; the limit is {limits.hops} hops")
    ends = time.monotonic() + seconds
    stay = frozenset(keep)
    ways = usable([e for e in edges if e.target not in stay] if stay else edges, limits, worth)
    spread: Expanded | None = None
    if groups:
        free = [Group(g.sources, tuple(t for t in g.targets if t not in stay), g.edge) for g in groups]
        spread = expand(free, ways, partial(as_way, limits=limits, worth=worth))
        ways += spread.ways
    if limits.hops <= 1 and solver != "greedy":
        chosen, freed, bound = solve_one_hop(ways, limits, solver, ends)
    else:
        chosen, freed, bound = _by_parts(ways, limits, solver, ends)
    if spread is not None and not spread.whole:
        bound = spread.most
    taken = {w.target: w.edge for w in chosen}
    if worth is None:
        freed, bound = round(freed), round(bound)
    return Retention(
        taken=tuple(taken.values()),
        kept=tuple(asset for asset in sizes if asset not in taken),
        freed=freed,
        bound=max(bound, freed),
    )


def _check(sizes: Mapping[str, int], edges: Sequence[Edge], keep: Collection[str], groups: Sequence[Group]) -> None:
    for edge in edges:
        for asset in (edge.target, *edge.sources):
            if asset not in sizes:
                raise UsageError(f"the edge {edge.kind} speaks of {asset!r}, which is not among the assets")
    for group in groups:
        for asset in (*group.sources, *group.targets):
            if asset not in sizes:
                raise UsageError(f"a group of edges speaks of {asset!r}, which is not among the assets")
    for asset in keep:
        if asset not in sizes:
            raise UsageError(f"{asset!r} is to be kept, but is not among the assets")


def _by_parts(ways: Sequence[Way], limits: Limits, solver: Solver, ends: float) -> tuple[list[Way], float, float]:
    chosen: list[Way] = []
    freed = bound = 0.0
    for part in parts(ways, limits):
        found, most = _solve(part, solver, ends)
        chosen += found
        freed += gained(found)
        bound += most
    return chosen, freed, bound


def _solve(part: Problem, solver: Solver, ends: float) -> tuple[list[Way], float]:
    """A legal choice for one part, and a bound on what any frees."""
    simple = part.most
    if len(part.ways) == 1:
        return list(part.ways), simple
    made = greedy(part)
    if gained(made) >= simple or solver == "greedy":
        return made, simple
    if solver == "auto" and is_forest(part):
        best = solve_forest(part)
        return best, gained(best)
    left = min(PART_SECONDS, ends - time.monotonic())
    if solver == "ilp" and not fits(part):
        raise Refused(
            f"solver ilp: {len(part.assets):,} assets hang together by {len(part.ways):,} edges, in chains of up to "
            f"{part.hops:,} hops; HiGHS is asked for {CHAIN_ASSETS} assets at most.",
            hint="Take the solver auto, or a limit of one hop.",
        )
    if left <= 0 or not fits(part):
        return made, simple
    found = solve_ilp(part, left)
    bound = min(simple, found.bound if found.bound > -inf else inf)
    if found.ways is not None and gained(found.ways) > gained(made):
        made = found.ways
    return made, bound
