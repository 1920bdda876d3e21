"""Two networks as one that is wider: matched units are merged or kept apart (partial merging)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import final

import numpy as np

from nett.core.dtypes import Array
from nett.core.symmetry import Symmetry
from nett.core.symmetry.widths import GroupMap, UnitMap, resized

NOTHING = -1  # a position that a network has no part in


@final
class Partial:
    """Which units of two aligned networks become one, and where everything lies in the wider network.

    A group of n units of which s are kept apart has n + s in the wider network: n - s merged ones, in order, then the
    s of the first network, then the s of the second.

    Args:
        apart: group -> the units that are kept apart; groups that are not named are merged whole.
        one, two: the tensors of both, the second's units in the order of those that they are matched with.
    """

    def __init__(
        self, symmetry: Symmetry, apart: Mapping[str, Array], one: Mapping[str, Array], two: Mapping[str, Array]
    ) -> None:
        self.apart = {name: np.sort(np.asarray(units, np.int64)) for name, units in apart.items() if len(units)}
        first, second = {}, {}
        for name, units in self.apart.items():
            merged = np.setdiff1d(np.arange(symmetry.group(name).size), units)
            none = np.full(len(units), NOTHING)
            first[name] = np.concatenate([merged, units, none])
            second[name] = np.concatenate([merged, none, units])
        self.old, self.sources = symmetry, (first, second)
        self.symmetry, mine = resized(symmetry, one, {g: _taking(units) for g, units in first.items()})
        other = shaped_as(symmetry, two)
        self.taken = mine, resized(other, two, {g: _taking(units) for g, units in second.items()})[1]

    def axis(self, tensor: str, axis: int) -> tuple[Array, Array]:
        """From which position of each network a position of the wider one comes; ``NOTHING`` for none."""
        one, two = (self._positions(tensor, axis, sources) for sources in self.sources)
        return one, two

    def _positions(self, tensor: str, axis: int, sources: Mapping[str, Array]) -> Array:
        before, after = (s.axes(tensor).get(axis, []) for s in (self.old, self.symmetry))
        size, wider = self.old.shapes[tensor][axis], self.symmetry.shapes[tensor][axis]
        found, fixed = np.full(wider, NOTHING), np.ones(size, bool)
        free = np.ones(wider, bool)
        for (group, place), (_, now) in zip(before, after, strict=True):
            units = sources.get(group.name, np.arange(group.size))
            found[now.index[units >= 0]] = place.index[units[units >= 0]]
            fixed[place.index], free[now.index] = False, False
        found[free] = np.flatnonzero(fixed)
        return found

    def tensors(self, head: int | None = None, heads: Sequence[str] = ()) -> dict[str, Array]:
        """All tensors of the wider network; those in ``heads`` are of the network ``head`` alone."""
        return {
            n: self.taken[head][n] if head is not None and n in heads else self.merged(n, *(t[n] for t in self.taken))
            for n in self.taken[0]
            if head is not None or n not in heads
        }

    def merged(self, name: str, one: Array, two: Array) -> Array:
        """A tensor of the wider network, from what each network has in it.

        Rows that make a merged unit are the mean of both networks' rows, and so are those of outputs; rows of a unit
        that is kept apart are its own. Columns read what their network had: a merged row reads each network's units
        with half of that network's weight, and units of one network never read those of the other.
        """
        return averaged(one, two, self._shared(name, one.ndim)) if one.dtype.kind == "f" else one

    def _shared(self, name: str, dimensions: int) -> Array:
        """Broadcast over the wider tensor: whether an entry makes something that both networks have part in."""
        shared = np.ones([1] * dimensions, bool)
        for axis, found in self.old.axes(name).items():
            if any(p.role != "consumer" and g.name in self.apart for g, p in found):
                one, two = self.axis(name, axis)
                shape = [1] * dimensions
                shape[axis] = -1
                shared = shared & ((one >= 0) & (two >= 0)).reshape(shape)
        return shared


def averaged(one: Array, two: Array, shared: Array) -> Array:
    """``one + two``, halved where ``shared``; in float64, so that it is to the bit what averages of weights are."""
    total = one.astype(np.float64) + two
    return np.where(shared, total / 2, total).astype(one.dtype)


def chosen_apart(scores: Array, count: int) -> Array:
    """The ``count`` units whose matched pairs score lowest; of equal scores the first."""
    return np.sort(np.argsort(scores, kind="stable")[:count])


def _taking(units: Array) -> GroupMap:
    taken = np.flatnonzero(units >= 0)
    start = np.concatenate([[0], np.cumsum(units >= 0)])
    one = UnitMap(start, units[taken], np.ones(len(taken)))
    return GroupMap(one, one)


def shaped_as(symmetry: Symmetry, tensors: Mapping[str, Array]) -> Symmetry:
    """The symmetry of a network whose heads have numbers of outputs of their own."""
    return replace(symmetry, shapes={n: tensors[n].shape if n in tensors else s for n, s in symmetry.shapes.items()})
