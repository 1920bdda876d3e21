"""One-hop retention (R2D2, P03, Opt-Ret) by named solvers: what is sure is settled first, then each part that still
hangs together goes to the tree's programme, to HiGHS, or to flips with the bound of HiGHS's relaxation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec

from nett.core.errors import Refused, missing_extra
from nett.core.retention.flips import from_all_kept, rounded
from nett.core.retention.location import RELAXED_WAYS, WHOLE_WAYS, relax_location, solve_location
from nett.core.retention.problem import Limits, Problem, Solver, Way, gained, parts
from nett.core.retention.reduce import reduce
from nett.core.retention.tree import not_a_tree, solve_tree

LEAST_SECONDS = 0.05  # less is not worth starting the solver for
RELAXED_SHARE = 0.6  # of a part's time for the relaxation at most; the rest is for the integer programme


def solve_one_hop(ways: Sequence[Way], limits: Limits, solver: Solver, ends: float) -> tuple[list[Way], float, float]:
    """The choice, what it frees, and a bound on what any frees. ``ends``: by the monotonic clock."""
    chosen: list[Way] = []
    freed = bound = 0.0
    found = parts(reduce(ways), limits)
    if solver == "ilp" and find_spec("scipy") is None:
        raise missing_extra("scipy", "store", "The solver ilp")
    if solver != "auto":
        for part in found:
            _refuse(part, solver)
    found.sort(key=lambda part: len(part.ways))  # the time that small ones leave goes to the large
    todo = sum(len(part.ways) for part in found)
    for part in found:
        share = (ends - time.monotonic()) * len(part.ways) / todo
        todo -= len(part.ways)
        made, most = _solve(part, solver, share)
        chosen += made
        freed += gained(made)
        bound += max(most, gained(made))
    return chosen, freed, bound


def _refuse(part: Problem, solver: Solver) -> None:
    why = not_a_tree(part) if solver == "dyn-lin" else None
    if why is not None:
        raise Refused(f"solver dyn-lin solves lines and trees; here {why}.", hint="Take the solver auto or ilp.")
    if solver == "ilp" and len(part.ways) > WHOLE_WAYS:
        raise Refused(
            f"solver ilp: {len(part.assets):,} assets hang together by {len(part.ways):,} edges, {part.assets[0]!r} "
            f"among them; the integer programme is solved up to {WHOLE_WAYS:,}.",
            hint="Take the solver auto: its plan comes with a bound.",
        )


def _solve(part: Problem, solver: Solver, seconds: float) -> tuple[list[Way], float]:
    if len(part.targets) == 1:
        (ways,) = part.targets.values()
        return [ways[0]], ways[0].gain
    if solver == "dyn-lin" or (solver == "auto" and not_a_tree(part) is None):
        best = solve_tree(part)
        return best, gained(best)
    ends = time.monotonic() + seconds
    made, bound = from_all_kept(part), part.most
    if gained(made) >= bound or find_spec("scipy") is None:
        return made, bound
    if solver == "auto" and len(part.ways) <= RELAXED_WAYS and ends - time.monotonic() > LEAST_SECONDS:
        relaxed = relax_location(part, RELAXED_SHARE * (ends - time.monotonic()))
        bound = min(bound, relaxed.bound)
        if relaxed.kept is not None:
            made = _better(made, rounded(part, relaxed.kept))
    left = ends - time.monotonic()
    if gained(made) < bound and len(part.ways) <= WHOLE_WAYS and left > LEAST_SECONDS:
        found = solve_location(part, left)
        bound = min(bound, found.bound)
        if found.ways is not None:
            made = _better(made, found.ways)
    return made, bound


def _better(one: list[Way], other: list[Way]) -> list[Way]:
    return other if gained(other) > gained(one) else one
