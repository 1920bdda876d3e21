"""From assets and edges to a plan: independent parts, each solved exactly where that is possible."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, final

from nett.core.edge import Edge
from nett.core.errors import UsageError
from nett.core.retention.forest import is_forest, solve_forest
from nett.core.retention.greedy import greedy
from nett.core.retention.ilp import fits, solve_ilp
from nett.core.retention.problem import Limits, Problem, Way, parts, usable

Solver = Literal["auto", "greedy"]
PART_SECONDS = 10.0  # of the solver, for one part


@final
@dataclass(frozen=True)
class Retention:
    """What the planner chose. ``freed <= bound``: no plan under the same limits frees more than ``bound``; the two
    are equal where the plan is proved to be the best. With ``byte_seconds``, both count the price of rebuilding."""

    taken: tuple[Edge, ...]
    kept: tuple[str, ...]
    freed: int
    bound: int

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
) -> Retention:
    """Choose edges so that every asset is kept or rebuilt from what is kept, within the limits, freeing most.

    ``sizes``: asset -> bytes. ``solver``: ``greedy`` never proves anything and needs no scipy; ``auto`` solves each
    independent part exactly where it is a forest or small (HiGHS), and greedily beyond, within ``seconds`` in all.
    An edge with an unknown asset is a :class:`UsageError`.
    """
    limits = limits or Limits()
    for edge in edges:
        for asset in (edge.target, *edge.sources):
            if asset not in sizes:
                raise UsageError(f"the edge {edge.kind} speaks of {asset!r}, which is not among the assets")
    ends = time.monotonic() + seconds
    chosen: list[Way] = []
    bound = 0.0
    for part in parts(usable(edges, limits), limits):
        ways, most = _solve(part, solver, ends)
        chosen += ways
        bound += most
    freed = sum(w.gain for w in chosen)
    taken = {w.target: w.edge for w in chosen}
    return Retention(
        taken=tuple(taken.values()),
        kept=tuple(asset for asset in sizes if asset not in taken),
        freed=round(freed),
        bound=max(round(bound), round(freed)),
    )


def _solve(part: Problem, solver: Solver, ends: float) -> tuple[list[Way], float]:
    """A legal choice for one part, and a bound on what any frees."""
    simple = sum(ways[0].gain for ways in part.targets.values())
    if len(part.ways) == 1:
        return list(part.ways), simple
    made = greedy(part)
    gained = sum(w.gain for w in made)
    if gained >= simple or solver == "greedy":
        return made, simple
    if is_forest(part):
        best = solve_forest(part)
        return best, sum(w.gain for w in best)
    left = min(PART_SECONDS, ends - time.monotonic())
    if left <= 0 or not fits(part):
        return made, simple
    found = solve_ilp(part, left)
    bound = min(simple, found.bound if found.bound > -inf else inf)
    if found.ways is not None and sum(w.gain for w in found.ways) > gained:
        made = found.ways
    return made, bound
