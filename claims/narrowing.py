"""Ways to make one trained network narrower without data: feature merging, and what a user would otherwise do.

All are tuned over four settings each, judged on validation examples; all have the same number of parameters, or the
baselines at most one unit of each layer more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from nett.core.symmetry import Group, Symmetry, proved_symmetry
from nett.core.symmetry.fitting import fitted
from nett.core.symmetry.folding import Fold, folds_of
from nett.core.symmetry.merging import Mergeable, mergeable
from nett.core.symmetry.widths import GroupMap, UnitMap, resized
from nett.merge.feature_weights import Distance, Features, Match, features, merging_map, parts

Arrays = dict[str, np.ndarray]
Widths = Mapping[str, int]  # group -> units that remain
IFM, MAGNITUDE, RANDOM = "feature merging", "magnitude channel pruning", "random merging"
Variant = tuple[Distance, Match, bool]  # the last: up to scale
VARIANTS: tuple[Variant, ...] = (
    ("paper", "joint", False), ("ward", "joint", False), ("ward", "joint", True), ("ward", "producers", True),
)  # fmt: skip


@dataclass
class Subject:
    """A trained network and the examples that judge what is left of it."""

    bed: str
    size: str
    seed: int
    module: Any
    val: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]

    @cached_property
    def arrays(self) -> Arrays:
        stored = self.module.state_dict().items()
        return {n: t.detach().numpy() for n, t in stored if t.is_floating_point()}

    @cached_property
    def allowed(self) -> Mergeable:
        shapes = {n: tuple(t.shape) for n, t in self.module.state_dict().items()}
        symmetry, _ = proved_symmetry(shapes, module=self.module, example=self.val[0][:2])
        return mergeable(symmetry.only(self.arrays))

    @property
    def symmetry(self) -> Symmetry:
        return self.allowed.symmetry

    @cached_property
    def folds(self) -> list[Fold]:
        return folds_of(self.symmetry, self.arrays, self.allowed.epsilon)

    def tree(self, variant: Variant) -> dict[str, Features]:
        distance, match, scaled = variant
        found = {}
        for g in self.symmetry.groups:
            free = scaled and g.name in self.allowed.scalable
            found[g.name] = features(
                g, self.arrays, self.folds, beta=1.0, distance=distance, match=match, normalize=free
            )  # fmt: skip
        return found

    def parameters(self, widths: Widths) -> int:
        """Numbers in the network when its groups are so wide."""
        total = 0
        for name, shape in self.symmetry.shapes.items():
            sizes = list(shape)
            for axis, found in self.symmetry.axes(name).items():
                sizes[axis] -= sum(p.run * (g.size - widths.get(g.name, g.size)) for g, p in found)
            total += int(np.prod(sizes))
        return total

    @torch.inference_mode()
    def right(self, arrays: Arrays, split: str) -> np.ndarray:
        """Per example, whether the answer is right."""
        x, y = self.val if split == "val" else self.test
        made = fitted(self.module, arrays).eval()
        return (torch.cat([made(part) for part in x.split(500)]).argmax(1) == y).numpy()


@dataclass(frozen=True)
class Narrow:
    """What one way makes of a network at one budget: its setting, widths, and numbers."""

    note: str
    arrays: Arrays
    parameters: int


def candidates(
    subject: Subject, share: float, trees: Mapping[Variant, dict[str, Features]]
) -> Iterator[tuple[str, Narrow]]:
    """(way, what it makes) for each of the four settings of each way, at ``share`` of all parameters.

    The widths of feature merging are those of the smallest beta that fits. Pruning and random merging use them too, or
    the same share of every layer, whichever is better.
    """
    total = subject.parameters({})
    own: list[Widths] = []
    for variant, found in trees.items():
        widths = _by_beta(subject, found, share * total)
        own.append(widths)
        maps = {
            g.name: merging_map(g, found[g.name], g.size - widths[g.name], subject.arrays, subject.folds)
            for g in subject.symmetry.groups
        }
        said = f"{variant[0]}, {variant[1]}{', up to scale' if variant[2] else ''}"
        yield IFM, _made(subject, maps, said)
    even = _evenly(subject, share * total)
    for layout, widths in (("evenly", even), ("its widths", own[0])):
        for score in ("incoming", "incoming times outgoing"):
            yield MAGNITUDE, _made(subject, _pruned(subject, widths, score), f"{score}, {layout}")
        for draw in (0, 1):
            rng = np.random.default_rng([subject.seed, draw, int(1000 * share)])
            yield RANDOM, _made(subject, _at_random(subject, widths, rng), f"draw {draw}, {layout}")


def _made(subject: Subject, maps: Mapping[str, GroupMap], note: str) -> Narrow:
    after, arrays = resized(subject.symmetry, subject.arrays, maps)
    return Narrow(note, arrays, subject.parameters({g.name: g.size for g in after.groups}))


def _by_beta(subject: Subject, found: Mapping[str, Features], most: float) -> Widths:
    """Widths at the smallest beta whose network has at most ``most`` parameters."""

    def at(beta: float) -> Widths:
        return {name: f.tree.size - f.tree.merges(beta) for name, f in found.items()}

    steps = sorted({float(b) for f in found.values() for b in np.maximum.accumulate(f.tree.low / f.tree.high)})
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        if subject.parameters(at(steps[middle] * (1 + 1e-12))) <= most:
            high = middle
        else:
            low = middle + 1
    return at(steps[low] * (1 + 1e-12))


def _evenly(subject: Subject, most: float) -> Widths:
    """The largest common share of every layer's units that has at most ``most`` parameters, rounded up."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        floor = {g.name: max(1, int(middle * g.size)) for g in subject.symmetry.groups}
        low, high = (middle, high) if subject.parameters(floor) <= most else (low, middle)
    return {g.name: min(g.size, max(1, int(low * g.size) + 1)) for g in subject.symmetry.groups}


def _pruned(subject: Subject, widths: Widths, score: str) -> dict[str, GroupMap]:
    """Units with the smallest L1 norm of their (folded) weights go, as Li et al. 2017 prune filters."""
    maps = {}
    for group in subject.symmetry.groups:
        norms = {"producer": np.zeros(group.size), "consumer": np.zeros(group.size)}
        for role, rows in parts(group, subject.arrays, subject.folds):
            if rows.shape[1] > 1 or role == "consumer":  # the shift is a bias, and no weight
                norms[role] += np.abs(rows).sum(1)
        value = norms["producer"] * (norms["consumer"] if score != "incoming" else 1)
        kept = np.sort(np.argsort(-value, kind="stable")[: widths[group.name]])
        chosen = UnitMap.of_matrix(np.eye(group.size)[kept])
        maps[group.name] = GroupMap(chosen, chosen)
    return maps


def _at_random(subject: Subject, widths: Widths, rng: np.random.Generator) -> dict[str, GroupMap]:
    """Pairs drawn at random join as the closest do in feature merging."""
    maps = {}
    for group in subject.symmetry.groups:
        tree = _random_tree(group, rng)
        maps[group.name] = merging_map(group, tree, group.size - widths[group.name], subject.arrays, subject.folds)
    return maps


def _random_tree(group: Group, rng: np.random.Generator) -> Features:
    from nett.merge.feature_tree import FeatureTree

    alive, pairs = list(range(group.size)), []
    while len(alive) > 1:
        i, j = sorted(rng.choice(len(alive), 2, replace=False).tolist())
        pairs.append((alive[i], alive.pop(j)))
    none = np.zeros(len(pairs))
    return Features(FeatureTree(group.name, group.size, np.array(pairs).reshape(-1, 2), none, none, True), None)


def best(subject: Subject, share: float, trees: Mapping[Variant, dict[str, Features]]) -> dict[str, Narrow]:
    """For each way the setting that is best on validation examples; the first of equals."""
    found: dict[str, tuple[float, Narrow]] = {}
    for way, narrow in candidates(subject, share, trees):
        score = float(subject.right(narrow.arrays, "val").mean())
        if way not in found or score > found[way][0]:
            found[way] = score, narrow
    return {way: narrow for way, (_, narrow) in found.items()}


def timed(make: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    import time

    began = time.perf_counter()
    make()
    return time.perf_counter() - began


def subjects(seeds: Sequence[int], skipped: dict[str, str]) -> Iterator[Subject]:
    """Networks trained on digits at several widths, and the residual networks of the assets at two depths."""
    from claims.narrow_beds import digits_networks, residual_networks

    yield from digits_networks(seeds)
    yield from residual_networks(seeds, skipped)
