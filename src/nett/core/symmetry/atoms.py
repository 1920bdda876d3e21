"""Which positions of which axes are the same unit: union-find over positions, read out as groups.

Every position of an axis that could be permuted is an atom. An operation ties atoms (the channel that a convolution
makes is the channel that the next one reads), pins them (outputs, what nothing is known of), and its axes are
seen. Two units may change places if they have been seen in the same axes in the same way; so a slice or a
concatenation parts the units that it treats differently, and nothing else has to be said about it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import final

import numpy as np

from nett.core.dtypes import Array
from nett.core.symmetry.groups import Group, Place, Role, Where

CONSTANT = -1  # an atom that is the same number in every unit, such as a zero of padding
Axis = Array | None  # the atoms of an axis; None for one that is never permuted


@final
@dataclass
class Owned:
    """The axes of one parameter or buffer, and what they do."""

    names: list[str]
    axes: list[Axis]
    roles: list[Role | None]
    parts: list[tuple[int, Array, Where]] = field(default_factory=list)  # axis, atoms, where: of grouped convolutions


@final
class Atoms:
    """Atoms with their ties, and every axis they were seen in."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._pinned: set[int] = set()
        self._seen: dict[int, tuple[Array, Array | None]] = {}
        self._through: list[tuple[str, Array]] = []

    def fresh(self, count: int) -> Array:
        """``count`` new atoms."""
        start = len(self._parent)
        self._parent += range(start, start + count)
        return self.see(np.arange(start, start + count))

    def see(self, axis: Array, blocks: Array | None = None) -> Array:
        """Remember an axis; with ``blocks`` (a number for each position), units of unlike numbers are unlike."""
        self._seen[len(self._seen)] = (axis, blocks)
        return axis

    def passed(self, operation: str, axis: Axis) -> None:
        """Remember that these units went through an operation."""
        if axis is not None:
            self._through.append((operation, axis))

    def tie(self, one: Axis, other: Axis) -> Axis:
        """Position by position the same units from now on; what is never permuted pins the other."""
        if one is None or other is None or len(one) != len(other):
            self.pin(one)
            self.pin(other)
            return one if other is None else other
        for i, j in zip(one.tolist(), other.tolist(), strict=True):
            if i >= 0 and j >= 0:
                a, b = self._find(i), self._find(j)
                if a != b:
                    self._parent[max(a, b)] = min(a, b)
        if np.any(one == CONSTANT) and not np.array_equal(one, other):
            return self.see(np.where(one == CONSTANT, other, one))
        return one

    def pin(self, axis: Axis) -> None:
        """These units stay where they are."""
        if axis is not None:
            self._pinned.update(i for i in axis.tolist() if i >= 0)

    def _find(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def groups(self, owned: list[Owned]) -> tuple[Group, ...]:
        """The largest groups of units that may change places, by the parameters they lie in."""
        root = np.array([self._find(i) for i in range(len(self._parent))] + [CONSTANT])  # [-1] stays -1
        pinned = {int(root[i]) for i in self._pinned}
        signatures: dict[int, list[object]] = defaultdict(list)
        for key, (axis, blocks) in self._seen.items():
            atoms = root[axis].tolist()
            if blocks is None:
                for atom, count in Counter(atoms).items():
                    signatures[atom].append((key, count))
            else:
                for atom, block in zip(atoms, blocks.tolist(), strict=True):
                    signatures[atom].append((key, -1, block))
        members: dict[object, list[int]] = defaultdict(list)
        for atom in sorted(signatures):
            if atom != CONSTANT and atom not in pinned:
                members[tuple(signatures[atom])].append(atom)
        found = []
        for atoms in members.values():
            places = self._places(owned, root, atoms) if len(atoms) > 1 else []
            if places:
                found.append(self._group(places, root, atoms))
        return _named(found)

    def _places(self, owned: list[Owned], root: Array, atoms: list[int]) -> list[Place]:
        number = {atom: i for i, atom in enumerate(atoms)}
        places = []
        for tensor in owned:
            parts = [(a, axis, ()) for a, axis in enumerate(tensor.axes) if axis is not None and tensor.roles[a]]
            for a, axis, where in (*parts, *tensor.parts):
                units: list[list[int]] = [[] for _ in atoms]
                for position, atom in enumerate(root[axis].tolist()):
                    if atom in number:
                        units[number[atom]].append(position)
                if units[0]:
                    role = tensor.roles[a] or "consumer"
                    places += [Place(n, a, np.array(units), role, where) for n in tensor.names]
        order = {"producer": 0, "state": 1, "consumer": 2}
        return sorted(places, key=lambda p: order[p.role])

    def _group(self, places: list[Place], root: Array, atoms: list[int]) -> Group:
        first = atoms[0]
        through = dict.fromkeys(name for name, axis in self._through if first in root[axis])
        name = places[0].tensor.rpartition(".")[0] or places[0].tensor
        return Group(name, "channel", tuple(places), tuple(through))


def _named(groups: list[Group]) -> tuple[Group, ...]:
    """Groups with names of their own: the layer that makes the units, numbered where it makes several kinds."""
    found, used = [], Counter[str]()
    for group in groups:
        used[group.name] += 1
        name = group.name if used[group.name] == 1 else f"{group.name}#{used[group.name]}"
        found.append(Group(name, group.unit, group.places, group.through))
    return tuple(found)
