"""Retention as an integer programme, solved by HiGHS: exact where it finishes, and a bound where it does not.

Chains (Bhattacherjee et al. 2015, problem 6): one binary variable a way, at most one way an asset, and potentials
that rise along every way that is taken: hops always (they also forbid rings), seconds where they are limited. With
one hop, an asset that is rebuilt may not be a source: a facility-location programme, whose relaxation is far tighter
(R2D2, P03, problem Opt-Ret).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf, isfinite
from typing import NamedTuple

import numpy as np

from nett.core.retention.problem import Problem, Way

CHAIN_ASSETS = 25  # beyond, chains do not finish in reasonable time
HOP_WAYS = 20_000


class Solved(NamedTuple):
    """What HiGHS found: a legal choice, or None, and a bound on what any choice frees."""

    ways: list[Way] | None
    bound: float


def fits(problem: Problem) -> bool:
    """Whether the programme is of a size that HiGHS solves, and scipy is there."""
    if problem.hops <= 1:
        small = len(problem.ways) <= HOP_WAYS
    else:
        small = len(problem.assets) <= CHAIN_ASSETS
    if not small:
        return False
    from importlib.util import find_spec

    return find_spec("scipy") is not None


def solve_ilp(problem: Problem, seconds: float) -> Solved:
    """Maximise the gain within ``seconds`` of the solver's time."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    rows = _one_hop(problem) if problem.hops <= 1 else _chains(problem)
    count = len(problem.ways)
    potentials = 0 if problem.hops <= 1 else len(problem.assets) * (2 if _timed(problem) else 1)
    data: list[float] = []
    columns: list[int] = []
    starts, upper = [0], []
    for row, most in rows:
        columns += row.keys()
        data += row.values()
        starts.append(len(columns))
        upper.append(most)
    matrix = csr_array((data, columns, starts), shape=(len(upper), count + potentials))
    scale = max(w.gain for w in problem.ways)  # the solver's tolerances are absolute
    objective = np.zeros(count + potentials)
    objective[:count] = [-w.gain / scale for w in problem.ways]
    highest = np.ones(count + potentials)
    if potentials:
        size = len(problem.assets)
        highest[count : count + size] = problem.hops
    with muted():
        found = milp(
            objective,
            integrality=np.r_[np.ones(count), np.zeros(potentials)],
            bounds=Bounds(0, highest),
            constraints=LinearConstraint(matrix, ub=upper),
            options={"time_limit": seconds, "mip_rel_gap": 0.0},
        )
    bound = -found.mip_dual_bound * scale if found.get("mip_dual_bound") is not None else inf
    if found.x is None:
        return Solved(None, bound)
    chosen = [w for w, x in zip(problem.ways, found.x[:count], strict=True) if x > 0.5]
    gained = sum(w.gain for w in chosen)
    return Solved(chosen, gained if found.status == 0 else max(bound, gained))


@contextmanager
def muted() -> Iterator[None]:
    """Nothing on standard output: HiGHS leaves a line of its own there where it meets its tolerances."""
    sys.stdout.flush()
    try:
        kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is no standard output
        yield
        return
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


Row = tuple[dict[int, float], float]  # coefficients by variable, and what their sum may be at most


def _one_way_a_target(problem: Problem) -> list[Row]:
    by_target: dict[str, dict[int, float]] = {}
    for i, way in enumerate(problem.ways):
        by_target.setdefault(way.target, {})[i] = 1.0
    return [(row, 1.0) for row in by_target.values()]


def _one_hop(problem: Problem) -> list[Row]:
    """A source is kept: for each way and source, the way and all ways to that source are at most one."""
    rows = _one_way_a_target(problem)
    place = {id(way): i for i, way in enumerate(problem.ways)}
    for i, way in enumerate(problem.ways):
        for source in way.sources:
            others = {place[id(w)]: 1.0 for w in problem.targets.get(source, ())}
            if others:
                rows.append(({i: 1.0} | others, 1.0))
    return rows


def _timed(problem: Problem) -> bool:
    return isfinite(problem.limits.seconds)


def _chains(problem: Problem) -> list[Row]:
    """p_source + step <= p_target where the way is taken, for the potentials p of hops and of seconds."""
    rows = _one_way_a_target(problem)
    first = len(problem.ways)
    hop = {asset: first + i for i, asset in enumerate(problem.assets)}
    time = {asset: first + len(problem.assets) + i for i, asset in enumerate(problem.assets)}
    unit = problem.longest or 1.0  # the solver's tolerances are absolute
    for i, way in enumerate(problem.ways):
        for source in way.sources:
            rows.append(_rise(i, hop[source], hop[way.target], 1.0, problem.hops))
            if _timed(problem):
                rows.append(_rise(i, time[source], time[way.target], way.seconds / unit, 1.0))
    return rows


def _rise(way: int, source: int, target: int, step: float, most: float) -> Row:
    return {source: 1.0, target: -1.0, way: most + step}, most
