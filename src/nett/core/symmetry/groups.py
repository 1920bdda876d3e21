"""Permutation symmetries of a network as data: groups of units that may change places, and where each unit lies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import NettError, UsageError, did_you_mean

Role = Literal["producer", "consumer", "state"]
Where = tuple[tuple[int, int, int], ...]


@final
@dataclass(frozen=True, eq=False)
class Place:
    """Where the units of a group lie in one tensor.

    index: ``[units, run]``, the positions along ``axis`` that belong to each unit, in the unit's own order.
    role: ``producer`` rows (weights and biases) make the unit, ``consumer`` columns read it, ``state`` belongs to it
    on its way (normalisation weights and statistics, depthwise kernels).
    where: ``(axis, start, stop)`` ranges of other axes; only that part of the tensor is meant (grouped convolutions).
    """

    tensor: str
    axis: int
    index: Array
    role: Role
    where: Where = ()

    @property
    def run(self) -> int:
        """How many positions a unit takes."""
        return int(self.index.shape[1])

    def part(self, tensor: Array) -> Array:
        """A view of the part that is meant."""
        return tensor[self._window(tensor.ndim)]

    def units(self, tensor: Array) -> Array:
        """``[units, run * rest]``: what each unit has in this tensor, flattened; a view where that can be."""
        moved = np.moveaxis(self.part(tensor), self.axis, 0)
        if self.whole(moved.shape[0]):
            return moved.reshape(self.index.shape[0], -1)
        return moved[self.index.reshape(-1)].reshape(self.index.shape[0], -1)

    def whole(self, length: int) -> bool:
        """Whether the units are all ``length`` positions of the axis, one after the other."""
        flat = self.index.reshape(-1)
        return len(flat) == length and bool(flat[0] == 0) and bool(np.all(np.diff(flat) == 1))

    def permute(self, tensor: Array, order: Array) -> None:
        """In place: the unit ``order[i]`` goes where unit ``i`` was."""
        part = np.moveaxis(self.part(tensor), self.axis, 0)
        if self.run == 1 and self.whole(part.shape[0]):
            self.part(tensor)[...] = np.take(self.part(tensor), order, axis=self.axis)
            return
        part[self.index.reshape(-1)] = part[self.index[order].reshape(-1)]

    def _window(self, dimensions: int) -> tuple[slice, ...]:
        window = [slice(None)] * dimensions
        for axis, start, stop in self.where:
            window[axis] = slice(start, stop)
        return tuple(window)


@final
@dataclass(frozen=True, eq=False)
class Group:
    """Units that may change places among each other without changing the function.

    unit: what one is (channel, residual dimension, MLP neuron, KV head, …). through: the operations that the units
    pass on their way from producers to consumers. parent: the group whose units each hold one such group as this
    (the query heads of a KV head); a parent moves whole units, this one what is inside. cell: which unit of it.
    """

    name: str
    unit: str
    places: tuple[Place, ...]
    through: tuple[str, ...] = ()
    parent: str | None = None
    cell: int | None = None

    @property
    def size(self) -> int:
        """The number of units."""
        return int(self.places[0].index.shape[0])

    def having(self, role: Role) -> list[Place]:
        return [p for p in self.places if p.role == role]

    def permuted(self, tensors: Mapping[str, Array], order: Array) -> dict[str, Array]:
        """The tensors of this group that ``tensors`` has, as copies with unit ``order[i]`` where unit ``i`` was."""
        found: dict[str, Array] = {}
        for place in self.places:
            if place.tensor in tensors:
                if place.tensor not in found:
                    found[place.tensor] = np.array(tensors[place.tensor])
                place.permute(found[place.tensor], order)
        return found


@final
@dataclass(frozen=True)
class Refusal:
    """A group that is not used, or a part of the network that is not permuted, and why."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


@final
@dataclass(frozen=True, eq=False)
class Origin:
    """What a symmetry was derived from, on which more can be proved: a torch module with an example of its input, or
    the config of a transformers model."""

    module: Any = None
    example: Any = None
    config: Mapping[str, Any] | None = None


@final
@dataclass(frozen=True, eq=False)
class Symmetry:
    """All groups of a network. ``shapes`` holds every tensor; ``refused`` what is left as it is, with the reason.

    folds: normalisation layer -> the layer whose output it alone takes (where a BatchNorm can be folded into).
    aliases: tensor -> the other name under which the same tensor is stored (tied weights), where there is one.
    origin: the code or config that it was derived from, where it is known.
    """

    groups: tuple[Group, ...]
    shapes: Mapping[str, tuple[int, ...]]
    refused: tuple[Refusal, ...] = ()
    folds: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    origin: Origin | None = None

    def group(self, name: str) -> Group:
        found = next((g for g in self.groups if g.name == name), None)
        if found is None:
            raise UsageError(f"no group is called {name!r}.{did_you_mean(name, [g.name for g in self.groups])}")
        return found

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Tensors that no permutation changes."""
        covered = {p.tensor for g in self.groups for p in g.places}
        return tuple(n for n in self.shapes if n not in covered)

    def axes(self, tensor: str) -> dict[int, list[tuple[Group, Place]]]:
        """Axis -> the groups that have units along it."""
        found: dict[int, list[tuple[Group, Place]]] = defaultdict(list)
        for group in self.groups:
            for place in group.places:
                if place.tensor == tensor:
                    found[place.axis].append((group, place))
        return dict(found)

    def without(self, refused: Iterable[Refusal]) -> Symmetry:
        """This symmetry without some groups, which are remembered as refused."""
        refused = tuple(refused)
        gone = {r.name for r in refused}
        kept = tuple(g for g in self.groups if g.name not in gone)
        return replace(self, groups=kept, refused=(*self.refused, *refused))

    def only(self, names: Iterable[str]) -> Symmetry:
        """This symmetry for tensors of these names: of a tied tensor, only the names that are stored."""
        kept = set(names)
        groups = tuple(replace(g, places=tuple(p for p in g.places if p.tensor in kept)) for g in self.groups)
        return replace(
            self,
            groups=tuple(g for g in groups if g.places),
            shapes={n: s for n, s in self.shapes.items() if n in kept},
            aliases={a: b for a, b in self.aliases.items() if a in kept and b in kept},
        )

    def check(self, tensors: Mapping[str, Array], where: object = None) -> None:
        """Refuse tensors of other shapes than those this symmetry was derived for, and missing ones."""
        for name, shape in self.shapes.items():
            if name in tensors:
                if tuple(tensors[name].shape) != tuple(shape):
                    raise NettError(
                        f"tensor {name!r} has shape {list(tensors[name].shape)}, but the symmetry is that of {list(shape)}",
                        where=where,
                    )
            elif self.aliases.get(name) not in tensors:
                raise NettError(f"tensor {name!r} is missing", where=where)

    def identity(self) -> dict[str, Array]:
        """Group -> the order in which nothing moves."""
        return {g.name: np.arange(g.size) for g in self.groups}

    def random(self, rng: np.random.Generator, groups: Sequence[str] | None = None) -> dict[str, Array]:
        """Group -> a random order; only the named groups move."""
        names = set(groups) if groups is not None else None
        return {g.name: rng.permutation(g.size) for g in self.groups if names is None or g.name in names}

    def apply(
        self, tensors: Mapping[str, Array], orders: Mapping[str, Array], *, inverse: bool = False
    ) -> dict[str, Array]:
        """The same function with its units in other places: in each named group, unit ``order[i]`` goes to place ``i``.

        Groups are applied one after another as they are listed; the inside of a unit before the unit as a whole.
        Tensors that nothing moves in are passed on as they are; the others are copies. ``inverse`` undoes it.
        """
        known = {g.name for g in self.groups}
        for name, order in orders.items():
            if name not in known:
                self.group(name)
            if sorted(np.asarray(order).tolist()) != list(range(self.group(name).size)):
                raise UsageError(f"the order of group {name!r} is no permutation of its {self.group(name).size} units")
        self.check(tensors)
        found = dict(tensors)
        own: set[str] = set()
        for group in reversed(self.groups) if inverse else self.groups:
            wanted = orders.get(group.name)
            if wanted is None or np.array_equal(wanted, np.arange(group.size)):
                continue
            moved = np.argsort(wanted) if inverse else np.asarray(wanted)
            for place in group.places:
                if place.tensor not in found:
                    continue
                if place.tensor not in own:
                    found[place.tensor] = np.array(found[place.tensor])
                    own.add(place.tensor)
                place.permute(found[place.tensor], moved)
        return found
