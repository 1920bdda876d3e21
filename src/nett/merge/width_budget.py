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


@final
class Cost:
    """The cost of the wider network as ``constant + linear @ shares - shares @ product @ shares``."""

    def __init__(self, terms: Sequence[Term], names: Sequence[str]) -> None:
        at = {name: i for i, name in enumerate(names)}
        self.constant, self.linear = 0.0, np.zeros(len(names))
        self.product = np.zeros((len(names), len(names)))
        for term in terms:
            rows, columns = (np.zeros(len(names)) for _ in range(2))
            for axis, units in ((term.out, rows), (term.into, columns)):
                for group, count in axis.of_group.items():
                    if group in at:
                        units[at[group]] += count
            out, into = (sum(a.at({})) for a in (term.out, term.into))
            self.constant += term.each * out * into
            self.linear += term.each * (out * columns + into * rows)
            self.product += term.each * np.outer(rows, columns)
        self.product = (self.product + self.product.T) / 2

    def at(self, shares: Array) -> float:
        return float(self.constant + self.linear @ shares - shares @ self.product @ shares)

    def gradient(self, shares: Array) -> Array:
        return np.asarray(self.linear - 2 * self.product @ shares)

    def room(self, shares: Array, at: int, limit: float) -> float:
        """The largest share of one group that fits beside the others, going up from 0."""
        rest = np.where(np.arange(len(shares)) == at, 0.0, shares)
        constant, slope, bend = self.at(rest) - limit, float(self.gradient(rest)[at]), float(self.product[at, at])
        if constant > 0:
            return 0.0
        if constant + slope - bend <= 0:
            return 1.0
        inside = slope * slope + 4 * bend * constant  # of constant + slope x - bend x^2 = 0, the smaller root
        return float(min(1.0, -2 * constant / (slope + np.sqrt(max(0.0, inside)))))


def best_ratios(
    terms: Sequence[Term], gains: Mapping[str, float], sizes: Mapping[str, int], budget: float
) -> dict[str, float]:
    """Group -> the share of its units kept apart: maximises ``sum gain * share`` with cost at most ``budget`` times that
    of the merged network. Shares are whole units.

    The cost is bilinear in the shares, so the problem is not convex. Filled greedily by gain for cost, once from each
    group as the first; each filling is refined by SLSQP (scipy), rounded down to whole units, filled up, and improved by
    exchanges between two groups. The best of all is returned: a local optimum, and the same one every time.

    Args:
        gains: what is gained by keeping all of a group apart; groups without gain come last.
        sizes: units of each group.

    Refused where even the merged network costs more (``budget < 1``).
    """
    if budget < 1:
        raise Refused(f"a budget of {budget:g} is less than one network", hint="Give 1 (all merged) to 2 (all apart).")
    names = sorted(gains)
    cost = Cost(terms, names)
    limit = budget * cost.constant * (1 + 1e-12)
    if cost.at(np.ones(len(names))) <= limit:
        return dict.fromkeys(names, 1.0)
    worth = np.array([max(0.0, gains[n]) for n in names])
    worth = np.maximum(worth, (worth.max() or 1.0) * 1e-9)  # room that is left is used
    count = np.array([sizes[n] for n in names], np.float64)
    starts = [_filled(cost, worth, limit, first) for first in range(len(names))]
    starts.append(np.full(len(names), _uniform(cost, limit)))
    best = np.zeros(len(names))
    for start in starts:
        for found in (start, _refined(cost, worth, limit, start)):
            whole = _exchanged(cost, worth, limit, _whole_units(cost, worth, limit, found, count), count)
            if worth @ whole > worth @ best * (1 + 1e-12):
                best = whole
    return dict(zip(names, best.tolist(), strict=True))


def uniform_ratio(terms: Sequence[Term], names: Sequence[str], budget: float) -> float:
    """The one share for all groups that fills the budget."""
    cost = Cost(terms, names)
    return _uniform(cost, budget * cost.constant * (1 + 1e-12))


def whole_units(
    terms: Sequence[Term], shares: Mapping[str, float], sizes: Mapping[str, int], budget: float
) -> dict[str, float]:
    """Shares rounded to whole units within the budget, the room that is left given to the largest groups."""
    names = sorted(shares)
    count = np.array([sizes[n] for n in names], np.float64)
    cost = Cost(terms, names)
    limit = budget * cost.constant * (1 + 1e-12)
    found = _whole_units(cost, count**2, limit, np.array([shares[n] for n in names]), count)
    return dict(zip(names, found.tolist(), strict=True))


def _uniform(cost: Cost, limit: float) -> float:
    shares = np.ones(len(cost.linear))
    if cost.at(shares) <= limit:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if cost.at(shares * middle) <= limit else (low, middle)
    return low


def _filled(cost: Cost, worth: Array, limit: float, first: int) -> Array:
    """Groups filled whole, the given one first and then by gain for cost; the last one as far as it goes."""
    shares, left = np.zeros(len(worth)), list(range(len(worth)))
    at = first
    while True:
        left.remove(at)
        shares[at] = cost.room(shares, at, limit)
        if not left:
            return shares
        raised = cost.gradient(shares) - np.diag(cost.product)  # of going from nothing to all
        at = max(left, key=lambda i: worth[i] / max(raised[i], 1e-300))


def _refined(cost: Cost, worth: Array, limit: float, start: Array) -> Array:
    from scipy.optimize import minimize

    scale, ground = float(worth.sum()), cost.constant
    found = minimize(
        lambda shares: -float(worth @ shares) / scale,
        start,
        jac=lambda shares: -worth / scale,
        bounds=[(0.0, 1.0)] * len(worth),
        constraints=[
            {
                "type": "ineq",
                "fun": lambda shares: (limit - cost.at(shares)) / ground,
                "jac": lambda shares: -cost.gradient(shares) / ground,
            }
        ],
        method="SLSQP",
        options={"maxiter": 100, "ftol": 1e-9},
    )
    return np.clip(found.x, 0.0, 1.0) if np.all(np.isfinite(found.x)) else start


def _whole_units(cost: Cost, worth: Array, limit: float, shares: Array, sizes: Array) -> Array:
    """Rounded down to whole units, shrunk until it fits, then filled up by whole units."""
    units = np.floor(shares * sizes + 1e-9)
    while np.any(units) and cost.at(units / sizes) > limit:
        units = np.maximum(0, units - 1)
    return _topped(cost, worth, limit, units / sizes, sizes)


def _topped(cost: Cost, worth: Array, limit: float, shares: Array, sizes: Array) -> Array:
    shares = shares.copy()
    for at in np.argsort(-worth / sizes, kind="stable").tolist():
        shares[at] = max(shares[at], np.floor(cost.room(shares, at, limit) * sizes[at] + 1e-9) / sizes[at])
    return shares


def _exchanged(cost: Cost, worth: Array, limit: float, shares: Array, sizes: Array) -> Array:
    """One group lowered by 1, 2, 4, … units or to nothing for as much of another as then fits, while that gains."""
    for _ in range(100):
        best, gained = shares, 1e-12 * float(worth @ shares)
        for low in np.flatnonzero(shares > 0).tolist():
            units = int(shares[low] * sizes[low] + 0.5)
            for less in {units, *(2**k for k in range(units.bit_length()))}:
                trial = shares.copy()
                trial[low] = (units - less) / sizes[low]
                for up in range(len(shares)):
                    if up != low and shares[up] < 1:
                        other = trial.copy()
                        other[up] = max(other[up], np.floor(cost.room(trial, up, limit) * sizes[up] + 1e-9) / sizes[up])
                        if worth @ (other - shares) > gained and cost.at(other) <= limit:
                            best, gained = other, float(worth @ (other - shares))
        if best is shares:
            return shares
        shares = _topped(cost, worth, limit, best, sizes)
    return shares
