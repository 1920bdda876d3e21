"""One-hop retention as facility location, for HiGHS: the integer programme, or its relaxation for a bound and a start.

Opt-Ret (R2D2, P03) in gains: x_v is 1 where v is kept, y_w where the way w is taken; maximise sum g_w y_w under
x_v + sum over ways w to v of y_w <= 1 and, for each target t and source s, sum over ways w to t that need s of
y_w <= x_s. A row for each pair is the tight form; only x need be whole. Each row holds as few numbers as it can, so
that the matrix grows with the ways.
"""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

import numpy as np

from nett.core.dtypes import Array
from nett.core.retention.ilp import muted
from nett.core.retention.problem import Problem, Way, gained

WHOLE_WAYS = 20_000  # beyond, in one part, the integer programme is not tried
RELAXED_WAYS = 400_000  # beyond, in one part, neither is its relaxation


class Located(NamedTuple):
    """What HiGHS found for the integer programme: a legal choice, or None, and a bound on what any choice frees."""

    ways: list[Way] | None
    bound: float


class Relaxed(NamedTuple):
    """The relaxation's answer: how far each asset is kept, from 0 to 1, or None where time was up; and the bound."""

    kept: dict[str, float] | None
    bound: float


def solve_location(problem: Problem, seconds: float) -> Located:
    """Maximise the gain within ``seconds`` of the solver's time."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    place = {asset: i for i, asset in enumerate(problem.assets)}
    first, count = len(place), len(problem.ways)
    matrix, upper = _rows(problem, place)
    scale = max(w.gain for w in problem.ways) / 1024  # the solver's tolerances are absolute, 1e-6
    objective = np.r_[np.zeros(first), [-w.gain / scale for w in problem.ways]]
    with muted():
        found = milp(
            objective,
            integrality=np.r_[np.ones(first), np.zeros(count)],
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, ub=upper),
            options={"time_limit": seconds, "mip_rel_gap": 0.0},
        )
    bound = found.get("mip_dual_bound")
    bound = inf if bound is None or not np.isfinite(bound) else -bound * scale
    if found.x is None:
        return Located(None, bound)
    chosen = _taken(problem, {asset for asset, i in place.items() if found.x[i] > 0.5})
    most = gained(chosen)
    return Located(chosen, most if found.status == 0 else max(bound, most))


def relax_location(problem: Problem, seconds: float) -> Relaxed:
    """The linear relaxation, by the interior-point method: the simplex method walks long on what ties so much.

    The bound is made from the dual prices p >= 0 of the rows, b.p + sum_j max(0, c_j - (A'p)_j), which holds for any
    p, exact or not (Neumaier and Shcherbina 2004).
    """
    from scipy.optimize import linprog

    place = {asset: i for i, asset in enumerate(problem.assets)}
    matrix, upper = _rows(problem, place)
    scale = max(w.gain for w in problem.ways)
    gains = np.r_[np.zeros(len(place)), [w.gain / scale for w in problem.ways]]
    with muted():
        found = linprog(
            -gains, A_ub=matrix, b_ub=upper, bounds=(0, 1), method="highs-ipm", options={"time_limit": seconds}
        )
    if found.x is None or found.status != 0:
        return Relaxed(None, inf)
    prices = np.maximum(0.0, -found.ineqlin.marginals)
    bound = upper @ prices + np.maximum(0.0, gains - matrix.T @ prices).sum()
    return Relaxed({asset: float(found.x[i]) for asset, i in place.items()}, float(bound) * scale)


def _taken(problem: Problem, kept: set[str]) -> list[Way]:
    """The best way whose sources are all kept, for each asset that is not; it stays where there is none."""
    return [
        way
        for target, ways in problem.targets.items()
        if target not in kept
        for way in [next((w for w in ways if kept.issuperset(w.sources)), None)]
        if way is not None
    ]


def _rows(problem: Problem, place: dict[str, int]) -> tuple[Any, Array]:
    from scipy.sparse import csr_array

    first = len(place)
    rows: list[int] = []
    columns: list[int] = []
    data: list[float] = []
    pairs: dict[tuple[str, str], int] = {}
    count = len(problem.targets)
    number = {target: i for i, target in enumerate(problem.targets)}
    for target, row in number.items():
        rows.append(row)
        columns.append(place[target])
    for i, way in enumerate(problem.ways):
        rows.append(number[way.target])
        columns.append(first + i)
        for source in way.sources:
            row = pairs.setdefault((way.target, source), count + len(pairs))
            rows.append(row)
            columns.append(first + i)
    data = [1.0] * len(rows)
    for (_, source), row in pairs.items():
        rows.append(row)
        columns.append(place[source])
        data.append(-1.0)
    shape = (count + len(pairs), first + len(problem.ways))
    return csr_array((data, (rows, columns)), shape=shape), np.r_[np.ones(count), np.zeros(len(pairs))]
