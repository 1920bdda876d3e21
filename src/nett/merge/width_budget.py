"""How much of each group is kept apart so that the most is gained within a budget of FLOPs or parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.symmetry import Symmetry


@final
@dataclass(frozen=True)
class Axis:
    """Positions of an axis: those that every network has, and group -> those that belong to its units."""

    fixed: int
    of_group: Mapping[str, int] = field(default_factory=dict)

    def at(self, ratios: Mapping[str, float]) -> tuple[float, float]:
        """(merged, kept apart in each network) positions."""
        apart = sum(n * ratios.get(g, 0.0) for g, n in self.of_group.items())
        return self.fixed + sum(self.of_group.values()) - apart, apart


@final
@dataclass(frozen=True)
class Term:
    """One tensor's cost: ``each`` times its entries that are not zero by construction."""

    each: float
    out: Axis
    into: Axis = Axis(1)

    def at(self, ratios: Mapping[str, float], *, dense: bool = False) -> float:
        merged, apart = self.out.at(ratios)
        merged_in, apart_in = self.into.at(ratios)
        every = (merged + 2 * apart) * (merged_in + 2 * apart_in)
        return self.each * (every if dense else every - 2 * apart * apart_in)


def total(terms: Sequence[Term], ratios: Mapping[str, float], *, dense: bool = False) -> float:
    """Cost of the wider network; ``dense`` counts the zeros between the networks' own units too."""
    return sum(term.at(ratios, dense=dense) for term in terms)


def terms_of(symmetry: Symmetry, each: Mapping[str, float]) -> list[Term]:
    """The terms of the tensors named in ``each``, which says how often an entry is used (1 to count parameters)."""

    def axis(name: str, at: int) -> Axis:
        of_group: dict[str, int] = {}
        for group, place in symmetry.axes(name).get(at, []):
            of_group[group.name] = of_group.get(group.name, 0) + place.index.size
        return Axis(symmetry.shapes[name][at] - sum(of_group.values()), of_group)

    terms = []
    for name, times in each.items():
        shape = symmetry.shapes[name]
        rest = times * float(np.prod(shape[2:]))
        if len(shape) > 1:
            terms.append(Term(rest, axis(name, 0), axis(name, 1)))
        else:
            terms.append(Term(rest, axis(name, 0) if shape else Axis(1)))
    return terms


def best_ratios(
    terms: Sequence[Term], gains: Mapping[str, float], sizes: Mapping[str, int], budget: float
) -> dict[str, float]:
    """Group -> the share of its units kept apart: maximises ``sum gain * share`` with cost at most ``budget`` times that
    of the merged network. Shares are whole units.

    The cost is bilinear in the shares and neither convex nor concave. Filled greedily by gain for cost, once from
    each group as the first; each solution is refined by SLSQP (scipy) and rounded down to whole units, which are then
    filled up one by one. The best of all is returned; the same call gives the same answer.

    Args:
        gains: what is gained by keeping all of a group apart; groups without gain come last.
        sizes: units of each group.

    Refused where even the merged network costs more (``budget < 1``).
    """
    if budget < 1:
        raise Refused(f"a budget of {budget:g} is less than one network", hint="Give 1 (all merged) to 2 (all apart).")
    names = sorted(gains)
    limit = budget * total(terms, {}) * (1 + 1e-12)
    if total(terms, dict.fromkeys(names, 1.0)) <= limit:
        return dict.fromkeys(names, 1.0)
    worth = np.array([max(0.0, gains[n]) for n in names])
    least = (worth.max() or 1.0) * 1e-9
    worth = np.maximum(worth, least)  # room that is left is used
    starts = [_filled(terms, names, worth, limit, [first]) for first in range(len(names))]
    starts.append(np.full(len(names), _uniform(terms, names, limit)))
    best = np.zeros(len(names))
    for start in starts:
        for found in (start, _refined(terms, names, worth, limit, start)):
            whole = _whole_units(terms, names, worth, limit, found, np.array([sizes[n] for n in names]))
            if worth @ whole > worth @ best * (1 + 1e-12):
                best = whole
    return dict(zip(names, best.tolist(), strict=True))


def uniform_ratio(terms: Sequence[Term], names: Sequence[str], budget: float) -> float:
    """The one share for all groups that fills the budget."""
    return _uniform(terms, names, budget * total(terms, {}) * (1 + 1e-12))


def _cost(terms: Sequence[Term], names: Sequence[str], shares: Array) -> float:
    return total(terms, dict(zip(names, shares.tolist(), strict=True)))


def _uniform(terms: Sequence[Term], names: Sequence[str], limit: float) -> float:
    low, high = 0.0, 1.0
    if _cost(terms, names, np.ones(len(names))) <= limit:
        return 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _cost(terms, names, np.full(len(names), middle)) <= limit else (low, middle)
    return low


def _filled(terms: Sequence[Term], names: Sequence[str], worth: Array, limit: float, first: list[int]) -> Array:
    """Groups filled whole, the given ones first and then by gain for cost; the last one as far as it goes."""
    shares, queue = np.zeros(len(names)), list(first)
    left = set(range(len(names)))
    while left:
        now = _cost(terms, names, shares)
        if queue:
            at = queue.pop(0)
        else:
            raised = {i: _cost(terms, names, np.where(np.arange(len(names)) == i, 1.0, shares)) - now for i in left}
            at = max(sorted(left), key=lambda i: worth[i] / max(raised[i], 1e-300))
        left.discard(at)
        shares[at] = _room(terms, names, limit, shares, at)
    return shares


def _room(terms: Sequence[Term], names: Sequence[str], limit: float, shares: Array, at: int) -> float:
    """The largest share of one group that fits beside the others."""
    low, high = 0.0, 1.0
    trial = shares.copy()
    trial[at] = 1.0
    if _cost(terms, names, trial) <= limit:
        return 1.0
    for _ in range(50):
        trial[at] = (low + high) / 2
        low, high = (trial[at], high) if _cost(terms, names, trial) <= limit else (low, trial[at])
    return float(low)


def _refined(terms: Sequence[Term], names: Sequence[str], worth: Array, limit: float, start: Array) -> Array:
    from scipy.optimize import minimize

    scale, ground = float(worth.sum()), _cost(terms, names, np.zeros(len(names)))
    found = minimize(
        lambda shares: -float(worth @ shares) / scale,
        start,
        jac=lambda shares: -worth / scale,
        bounds=[(0.0, 1.0)] * len(names),
        constraints=[{"type": "ineq", "fun": lambda shares: (limit - _cost(terms, names, shares)) / ground}],
        method="SLSQP",
        options={"maxiter": 100, "ftol": 1e-9},
    )
    shares = np.clip(found.x, 0.0, 1.0)
    return shares if np.all(np.isfinite(shares)) else start


def _whole_units(
    terms: Sequence[Term], names: Sequence[str], worth: Array, limit: float, shares: Array, sizes: Array
) -> Array:
    """Rounded down to whole units, shrunk until it fits, then filled up by whole units."""
    units = np.floor(shares * sizes + 1e-9)
    while _cost(terms, names, units / sizes) > limit:
        units = np.maximum(0, units - 1)
    for at in np.argsort(-worth / sizes, kind="stable").tolist():
        room = _room(terms, names, limit, units / sizes, at)
        units[at] = max(units[at], np.floor(room * sizes[at] + 1e-9))
    return np.asarray(units / sizes)
