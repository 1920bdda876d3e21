"""Weight matching: the places for a network's units in which its weights lie nearest to another network's.

Coordinate descent (Ainsworth et al. 2023, algorithm 1): one group at a time is put in the order that is best while
the others stay, which is a linear assignment problem. Every step is taken only if the inner product of the two
networks grows, so the objective never falls, also where an axis of a tensor meets itself (where one assignment is only an
approximation). Heads are assigned by how well they fit once their insides are put in order, and the insides with them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from nett.core.assignment import assigned
from nett.core.dtypes import Array
from nett.core.symmetry.groups import Group, Place, Symmetry

_NOTHING = 1e-7  # of the product of both norms: below it a gain is rounding


@final
@dataclass(frozen=True)
class Alignment:
    """orders: group -> the order of its units. objective: the inner product with the target, after each sweep."""

    orders: dict[str, Array]
    objective: tuple[float, ...]


@final
@dataclass
class Matcher:
    """One network on its way: its tensors in their present places, and the orders that led there."""

    symmetry: Symmetry
    tensors: dict[str, Array]
    orders: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        covered = {p.tensor for g in self.symmetry.groups for p in g.places}
        self.tensors = {n: np.array(t) if n in covered else t for n, t in self.tensors.items()}
        self.orders = self.orders or self.symmetry.identity()
        self._matched = sorted(n for n in covered if n in self.tensors and not _is_statistic(n))
        self._inside: dict[str, dict[str, dict[int, Group]]] = defaultdict(lambda: defaultdict(dict))
        for group in self.symmetry.groups:
            if group.parent is not None and group.cell is not None:
                self._inside[group.parent][group.name.rsplit(".", 1)[-1]][group.cell] = group

    def product(self, target: Mapping[str, Array], names: Sequence[str] | None = None) -> float:
        """Inner product with ``target`` over the tensors that permutations move; statistics of norms do not count."""
        names = self._matched if names is None else names
        return float(sum(_dot(target[n], self.tensors[n]) for n in names))

    def sweep(
        self, target: Mapping[str, Array], rng: np.random.Generator, known: dict[str, int] | None = None
    ) -> float:
        """Every group once, in random order; returns by how much the inner product grew.

        ``known`` remembers, for one target, when each group was last found to be in its best order; groups of which
        no tensor has changed since are passed over.
        """
        known = {} if known is None else known
        gained = 0.0
        for k in rng.permutation(len(self.symmetry.groups)):
            group = self.symmetry.groups[int(k)]
            places = self._places(group)
            stamp = max((known.get("tensor " + p.tensor, 0) for p in places), default=0)
            if not places or known.get("group " + group.name, -1) >= stamp:
                continue
            gain = self._step(group, places, target)
            now = known["clock"] = known.get("clock", 0) + 1
            if gain:
                gained += gain
                touched = {p.tensor for p in group.places}
                known.update({"tensor " + n: now for n in touched})
            # After its own step a group is in its best order, unless one assignment was only an approximation.
            known["group " + group.name] = now if not gain or _is_exact(places) else stamp - 1
        return gained

    def _places(self, group: Group) -> list[Place]:
        return [p for p in group.places if p.tensor in self.tensors and not _is_statistic(p.tensor)]

    def _step(self, group: Group, places: list[Place], target: Mapping[str, Array]) -> float:
        names = sorted({p.tensor for p in places})
        least = _NOTHING * sum(_norm(target[n]) * _norm(self.tensors[n]) for n in names)
        inside = self._inside.get(group.name)
        if inside:
            return self._step_of_heads(group, places, inside, target, names, least)
        alike = _alike(places, target, self.tensors)
        order = assigned(alike)
        gain = float(alike[np.arange(len(order)), order].sum() - np.trace(alike))
        if gain <= least:
            return 0.0
        if _is_exact(places):
            self._move(group, order)
            return gain
        return self._tried([(group, order)], target, names, least)

    def _step_of_heads(
        self,
        group: Group,
        places: list[Place],
        inside: Mapping[str, Mapping[int, Group]],
        target: Mapping[str, Array],
        names: list[str],
        least: float,
    ) -> float:
        """Heads are as alike as they are after their insides have been put in order."""
        left = {p.tensor: p for p in places}
        alike = np.zeros((group.size, group.size))
        for kind in sorted(inside, key=("value", "key", "query").index):
            cells = inside[kind]
            if len(cells) != group.size:
                continue
            mine = {c: [p for p in g.places if p.tensor in left] for c, g in cells.items()}
            if not mine[0]:
                continue
            size = cells[0].size
            table = sum(
                np.concatenate([mine[c][k].units(target[mine[c][k].tensor]) for c in range(group.size)])
                @ np.concatenate([mine[c][k].units(self.tensors[mine[c][k].tensor]) for c in range(group.size)]).T
                for k in range(len(mine[0]))
            )
            blocks = np.asarray(table, np.float64).reshape(group.size, size, group.size, size).transpose(0, 2, 1, 3)
            for i in range(group.size):
                for j in range(group.size):
                    best = assigned(blocks[i, j])
                    alike[i, j] += blocks[i, j][np.arange(size), best].sum()
            for p in mine[0]:
                left.pop(p.tensor)
        if left:
            alike += _alike(list(left.values()), target, self.tensors)
        order = assigned(alike)
        if np.array_equal(order, np.arange(group.size)):
            return 0.0
        before = self.product(target, names)
        saved = {p.tensor: self.tensors[p.tensor].copy() for p in group.places if p.tensor in self.tensors}
        orders = {n: o.copy() for n, o in self.orders.items()}
        self._move(group, order)
        for cells in inside.values():
            for child in cells.values():
                within = self._places(child)
                self._move(child, assigned(_alike(within, target, self.tensors)))
        gain = self.product(target, names) - before
        if gain > least:
            return gain
        self.tensors.update(saved)
        self.orders = orders
        return 0.0

    def _tried(
        self, moves: list[tuple[Group, Array]], target: Mapping[str, Array], names: list[str], least: float
    ) -> float:
        """Take moves back if the inner product does not grow."""
        before = self.product(target, names)
        for group, order in moves:
            self._move(group, order)
        gain = self.product(target, names) - before
        if gain > least:
            return gain
        for group, order in reversed(moves):
            self._move(group, np.argsort(order))
        return 0.0

    def _move(self, group: Group, order: Array) -> None:
        for place in group.places:
            if place.tensor in self.tensors:
                place.permute(self.tensors[place.tensor], order)
        name = group.name
        if group.parent is not None and group.cell is not None:  # the orders are those of the units before they moved
            cells = self._inside[group.parent][name.rsplit(".", 1)[-1]]
            parent = self.orders.get(group.parent)
            name = cells[int(parent[group.cell]) if parent is not None else group.cell].name
        self.orders[name] = self.orders[name][order]


def align(
    target: Mapping[str, Array],
    model: Mapping[str, Array],
    symmetry: Symmetry,
    *,
    seed: int = 0,
    sweeps: int = 100,
    start: Mapping[str, Array] | None = None,
) -> Alignment:
    """The orders in which ``model`` has the largest inner product with ``target``: a local optimum.

    ``symmetry.apply(model, orders)`` is then the same function, in the places nearest to ``target``. ``seed`` decides the
    sequence of groups; ``start`` orders to begin with.
    """
    matcher = _started(model, symmetry, start or {})
    rng = np.random.default_rng(seed)
    objective = [matcher.product(target)]
    known: dict[str, int] = {}
    for _ in range(sweeps):
        gained = matcher.sweep(target, rng, known)
        if not gained:
            break
        objective.append(objective[-1] + gained)
    return Alignment(matcher.orders, tuple(objective))


def align_all(
    models: Sequence[Mapping[str, Array]],
    symmetry: Symmetry,
    *,
    seed: int = 0,
    sweeps: int = 100,
    starts: Sequence[Mapping[str, Array]] | None = None,
) -> list[Alignment]:
    """Orders for several networks: each in turn is matched to the mean of the others until none moves any more
    (Ainsworth et al. 2023, algorithm 3). Of two, the first stays as it is. ``objective`` is then the sum of the inner
    products of all pairs, the same for every network.
    """
    if len(models) < 2:
        return [Alignment(symmetry.identity(), (0.0,)) for _ in models]
    starts = starts or [{} for _ in models]
    if len(models) == 2 and not starts[0]:
        found = align(models[0], models[1], symmetry, seed=seed, sweeps=sweeps, start=starts[1])
        return [Alignment(symmetry.identity(), found.objective), found]
    rng = np.random.default_rng(seed)
    matchers = [_started(m, symmetry, start) for m, start in zip(models, starts, strict=True)]
    moved = [n for n in matchers[0].tensors if n in {p.tensor for g in symmetry.groups for p in g.places}]
    total = {n: np.sum([m.tensors[n] for m in matchers], axis=0, dtype=np.float64) for n in moved}
    objective = [sum(matchers[i].product(matchers[j].tensors) for i in range(len(models)) for j in range(i))]
    for _ in range(sweeps):
        gained = 0.0
        for i in rng.permutation(len(models)):
            one = matchers[int(i)]
            others = {n: (total[n] - one.tensors[n]).astype(one.tensors[n].dtype) for n in moved}
            known: dict[str, int] = {}
            grown = 0.0
            while more := one.sweep(others, rng, known):
                grown += more
            if grown:
                gained += grown
                total = {n: others[n].astype(np.float64) + one.tensors[n] for n in moved}
        if not gained:
            break
        objective.append(objective[-1] + gained)
    return [Alignment(m.orders, tuple(objective)) for m in matchers]


def _started(model: Mapping[str, Array], symmetry: Symmetry, start: Mapping[str, Array]) -> Matcher:
    orders = {g.name: np.array(start.get(g.name, np.arange(g.size))) for g in symmetry.groups}
    return Matcher(symmetry, symmetry.apply(model, start), orders)


def _is_statistic(name: str) -> bool:
    """Running statistics say nothing of the weights; they move along without being matched."""
    return name.endswith(("running_mean", "running_var"))


def _is_exact(places: Sequence[Place]) -> bool:
    """Whether no tensor has these units along two axes, so that one assignment is the best order for certain."""
    axes: dict[str, set[int]] = defaultdict(set)
    for place in places:
        axes[place.tensor].add(place.axis)
    return all(len(a) == 1 for a in axes.values())


def _alike(places: Sequence[Place], target: Mapping[str, Array], tensors: Mapping[str, Array]) -> Array:
    """``[units, units]``: inner product of each unit of the target with each of the network, over all places."""
    found: Array | None = None
    for p in places:
        one = p.units(target[p.tensor]) @ p.units(tensors[p.tensor]).T
        found = one if found is None else np.add(found, one, out=found)
    assert found is not None
    return found.astype(np.float64, copy=False)


def _dot(one: Array, other: Array) -> float:
    return float(np.dot(one.reshape(-1).astype(np.float64), other.reshape(-1).astype(np.float64)))


def _norm(one: Array) -> float:
    return float(np.linalg.norm(one.reshape(-1)))
