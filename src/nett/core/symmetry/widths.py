"""Networks of other widths: the units of a group become sums of its old units, in every tensor that they lie in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.symmetry.groups import Group, Place, Symmetry


@final
@dataclass(frozen=True, eq=False)
class UnitMap:
    """New units as weighted sums of old ones: unit ``i`` is made of ``source[start[i]:start[i + 1]]``.

    start: ``[new + 1]``. source: ``[terms]``, numbers of old units. weight: ``[terms]``, or ``[terms, run]`` where the
    positions of a unit have weights of their own. A new unit without terms is zero.
    """

    start: Array
    source: Array
    weight: Array

    @property
    def size(self) -> int:
        """The number of new units."""
        return len(self.start) - 1

    @classmethod
    def of_matrix(cls, matrix: Array) -> UnitMap:
        """From ``[new, old]``; entries that are zero are no terms."""
        rows, columns = np.nonzero(matrix)
        start = np.searchsorted(rows, np.arange(matrix.shape[0] + 1))
        return cls(start, columns, np.asarray(matrix, np.float64)[rows, columns])

    @classmethod
    def of_labels(cls, labels: Array, weight: Array) -> UnitMap:
        """Old unit ``i`` goes into new unit ``labels[i]`` with ``weight[i]`` (or ``weight[i, :]``)."""
        order = np.argsort(labels, kind="stable")
        start = np.searchsorted(labels[order], np.arange(int(labels.max()) + 2))
        return cls(start, order, np.asarray(weight, np.float64)[order])

    def apply(self, units: Array) -> Array:
        """``[new, run, rest]`` of ``[old, run, rest]``, summed in float64. What comes with weight 1 alone is a copy."""
        weight = self.weight[:, None, None] if self.weight.ndim == 1 else self.weight[:, :, None]
        made = np.zeros((self.size, *units.shape[1:]), np.float64)
        filled = np.flatnonzero(np.diff(self.start))
        if len(filled):
            terms = units[self.source].astype(np.float64) * weight
            made[filled] = np.add.reduceat(terms, self.start[filled], axis=0)
        return made


@final
@dataclass(frozen=True, eq=False)
class GroupMap:
    """What becomes of a group: one map for what makes the units, one for the columns that read them.

    producer: for producers, and for state that ``of`` does not name. of: tensor -> its own map, in these two roles.
    """

    producer: UnitMap
    consumer: UnitMap
    of: Mapping[str, UnitMap] = field(default_factory=dict)

    def at(self, place: Place) -> UnitMap:
        """The map for one place."""
        return self.consumer if place.role == "consumer" else self.of.get(place.tensor, self.producer)


def resized(
    symmetry: Symmetry, tensors: Mapping[str, Array], maps: Mapping[str, GroupMap]
) -> tuple[Symmetry, dict[str, Array]]:
    """The network with the units of each named group as ``maps`` has them, and the symmetry of that network.

    Tensors keep their types; those that nothing changes are passed on as they are. Where a group becomes narrower the
    positions of its last units go, where it becomes wider new ones follow its last unit, so that what code tells from
    sizes (a flattened axis, the halves of a gate) stays where it was. Raises Refused for grouped convolutions and for
    attention heads, whose sizes the code fixes.
    """
    symmetry.check(tensors)
    found = dict(tensors)
    for name, map_ in maps.items():
        group = symmetry.group(name)
        _check(group, symmetry.groups)
        for place in group.places:
            _check_maps(group, place, map_.at(place))
        symmetry = _with_group(symmetry, group, found, map_)
    return symmetry, found


def _with_group(symmetry: Symmetry, group: Group, found: dict[str, Array], map_: GroupMap) -> Symmetry:
    """Change the tensors of one group in ``found``; returns the symmetry of what is there then."""
    moved: dict[tuple[str, int], Array] = {}  # (tensor, axis) -> where its old positions are now
    index: dict[tuple[str, int], Array] = {}
    shapes = dict(symmetry.shapes)
    for place in group.places:
        key = (place.tensor, place.axis)
        size = symmetry.shapes[place.tensor][place.axis]
        origin, index[key] = _slots(place.index, size, map_.at(place).size)
        now = np.full(size, -1)
        now[origin[origin >= 0]] = np.flatnonzero(origin >= 0)
        moved[key] = now
        if place.tensor in found:
            found[place.tensor] = _remade(found[place.tensor], place, map_.at(place), origin, index[key])
        shape = list(shapes[place.tensor])
        shape[place.axis] = len(origin)
        shapes[place.tensor] = tuple(shape)

    def placed(one: Group, place: Place) -> Place:
        key = (place.tensor, place.axis)
        if one.name == group.name:
            return replace(place, index=index[key])
        return replace(place, index=moved[key][place.index]) if key in moved else place

    groups = tuple(replace(g, places=tuple(placed(g, p) for p in g.places)) for g in symmetry.groups)
    return replace(symmetry, groups=groups, shapes=shapes)


def _remade(tensor: Array, place: Place, map_: UnitMap, origin: Array, index: Array) -> Array:
    """One tensor with other units along one axis."""
    old = np.moveaxis(tensor, place.axis, 0)
    made = old[np.maximum(origin, 0)]
    units = old[place.index.reshape(-1)].reshape(*place.index.shape, -1)
    made[index.reshape(-1)] = map_.apply(units).reshape(index.size, *made.shape[1:]).astype(tensor.dtype)
    return np.ascontiguousarray(np.moveaxis(made, 0, place.axis))


def _slots(index: Array, size: int, new: int) -> tuple[Array, Array]:
    """``origin [new size]``: the old position of each new one, -1 for a new unit's; and where the new units lie."""
    count = index.shape[0]
    if new <= count:
        kept = np.ones(size, bool)
        kept[index[new:].reshape(-1)] = False
        return np.flatnonzero(kept), (np.cumsum(kept) - 1)[index[:new]]
    origin: list[int] = []
    made = np.zeros((new, index.shape[1]), np.intp)
    at = {int(p): (u, r) for (u, r), p in np.ndenumerate(index)}
    ends = {int(index[-1, last - 1]): (first, last) for first, last in _stretches(index)}
    for position in range(size):
        if position in at:
            made[at[position]] = len(origin)
        origin.append(position)
        if position in ends:
            first, last = ends[position]
            for unit in range(count, new):
                for r in range(first, last):
                    made[unit, r] = len(origin)
                    origin.append(-1)
    return np.array(origin), made


def _stretches(index: Array) -> Sequence[tuple[int, int]]:
    """Runs of a unit's positions that follow each other in every unit: the whole of a flattened channel."""
    breaks = [r for r in range(1, index.shape[1]) if np.any(index[:, r] != index[:, r - 1] + 1)]
    edges = [0, *breaks, index.shape[1]]
    return list(pairwise(edges))


def _check(group: Group, groups: Sequence[Group]) -> None:
    if any(p.where for p in group.places):
        raise Refused(f"group {group.name!r} passes a grouped convolution, whose groups must stay equally wide")
    if group.parent is not None or any(g.parent == group.name for g in groups):
        raise Refused(f"group {group.name!r} lies in attention heads, whose number and size the model's code fixes")


def _check_maps(group: Group, place: Place, map_: UnitMap) -> None:
    if len(map_.source) and not 0 <= int(map_.source.min()) <= int(map_.source.max()) < group.size:
        raise Refused(f"the map of {place.tensor!r} names a unit that group {group.name!r} of {group.size} has not")
