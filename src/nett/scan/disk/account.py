"""How many bytes can be freed together, none counted twice, and how sure that is.

Each file is in one of three ways: kept as it is coded by itself, kept as a difference to the base of its family, or not
at all, where an equal one is kept. Within a file, tensors that an earlier file has as well cost nothing. Files are put in
an order, bases before the rest, and rest only on files before them: no two rest on each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import final

import numpy as np

from nett.core.dtypes import Array
from nett.scan.disk.alike import Twin
from nett.scan.disk.evidence import Evidence
from nett.scan.disk.models import Unit
from nett.scan.disk.steps import WORTH

SURE = 1.959963984540054  # standard deviations: 95 %


@final
@dataclass(frozen=True)
class Amount:
    """Allocated bytes, with the interval that holds the true number in 95 of 100 cases; all equal where it is exact."""

    value: int
    low: int
    high: int

    @classmethod
    def exactly(cls, value: float) -> Amount:
        return cls(round(value), round(value), round(value))

    def __add__(self, other: Amount) -> Amount:
        """Of two that may err together."""
        return Amount(self.value + other.value, self.low + other.low, self.high + other.high)


def wilson(weights: Array, yes: Array, *, exact: bool = False, all_seen: bool = False) -> Amount:
    """The bytes of those that are a ``yes``, with Wilson's score interval (1927) over the sampled tensors, each weighted
    by the bytes that it speaks for: n is Kish's effective number, (sum w)^2 / sum w^2.

    ``all_seen``: no tensor was left out; since tensors that differ in a page do differ, none can be added to the yes.
    """
    total = float(weights.sum())
    if not total:
        return Amount(0, 0, 0)
    p = float((weights * yes).sum()) / total
    if exact:
        return Amount.exactly(total * p)
    n = total * total / float((weights * weights).sum())
    z2 = SURE * SURE
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = SURE / (1 + z2 / n) * sqrt(max(0.0, p * (1 - p) / n + z2 / (4 * n * n)))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Amount(round(total * p), round(total * min(low, p)), round(total * (p if all_seen else max(high, p))))


def coded(weights: Array, shares: Array, errors: Array, files: Array) -> Amount:
    """The sum of ``weights * shares`` between 0 and all; ``errors``: standard errors of the shares, which go together
    within a file (``files``: number of the file of each row) and are independent between files."""
    value = float((weights * shares).sum())
    spread = SURE * sqrt(float((np.bincount(files, weights * errors) ** 2).sum())) if len(files) else 0.0
    return Amount(round(value), round(max(0.0, value - spread)), round(min(float(weights.sum()), value + spread)))


@final
@dataclass(frozen=True, eq=False)
class Coding:
    """What one file costs: coded bytes a byte of each row, by itself, to the base, and the best of all."""

    file: Evidence
    unit: Unit | None
    delta: Array | None
    twins: Sequence[Twin]
    best: Array
    error: Array

    @property
    def weights(self) -> Array:
        """Allocated bytes that each row speaks for."""
        return self.file.weights * self.file.item.share

    @property
    def kept_elsewhere(self) -> Array:
        found = np.zeros(len(self.best), bool)
        found[[t.row for t in self.twins]] = True
        return found


def together(codings: Sequence[Coding], *, exact: bool) -> Amount:
    """What the files free: tensors kept elsewhere as a whole, the others by what coding takes off."""
    if not codings:
        return Amount(0, 0, 0)
    weights = np.concatenate([c.weights for c in codings])
    twin = np.concatenate([c.kept_elsewhere for c in codings])
    shares = 1.0 - np.concatenate([c.best for c in codings])
    errors = np.concatenate([c.error for c in codings])
    files = np.repeat(np.arange(len(codings)), [len(c.best) for c in codings])
    all_seen = all(c.file.sampled == len(c.file.layout.names) for c in codings)
    equal = wilson(weights, twin, exact=exact, all_seen=all_seen)
    rest = coded(weights[~twin], shares[~twin], errors[~twin], files[~twin])
    found = equal + (Amount.exactly(rest.value) if exact else rest)
    return Amount(found.value, found.low, min(found.high, round(float(weights.sum()))))


def in_order(known: Sequence[Evidence], models: Sequence[Unit]) -> list[Evidence]:
    """Files that rest only on those before them: what cannot be freed, then bases, then the rest."""
    bases = {id(u.base) for u in models if u.base is not None}
    first = {e for u in models if id(u) in bases for e in u.files}
    return sorted(known, key=lambda e: (not e.item.pinned, e not in first, e.item.path))


def codings(
    order: Sequence[Evidence], models: Sequence[Unit], twins: Mapping[Evidence, Sequence[Twin]]
) -> list[Coding]:
    """For every file that may be freed."""
    place = {e: (u, n) for u in models for n, e in enumerate(u.files)}
    found = []
    for e in order:
        unit, number = place.get(e, (None, 0))
        delta = unit.delta_of(number) if unit is not None else None
        best, error = e.own.copy(), e.error
        if delta is not None and unit is not None:
            worth = delta < WORTH * best
            best, error = np.where(worth, delta, best), np.where(worth & (delta > 0), unit.error, error)
        mine = twins.get(e, ())
        best[[t.row for t in mine]] = 0.0
        if not e.item.pinned:
            found.append(Coding(e, unit, delta, mine, best, error))
    return found
