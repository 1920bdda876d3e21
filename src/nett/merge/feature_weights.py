"""The units of a group as vectors of weights, how far they lie apart, and what becomes of those that merge (P38)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import xxhash

from nett.core.dtypes import Array
from nett.core.symmetry.folding import Fold
from nett.core.symmetry.groups import Group, Place
from nett.core.symmetry.widths import GroupMap, UnitMap
from nett.merge.feature_tree import FeatureTree, feature_tree, squared_distances

Match = Literal["joint", "producers"]
Distance = Literal["ward", "paper"]


@final
@dataclass(frozen=True, eq=False)
class Features:
    """The tree of a group and the length by which its units were divided, where they were (``[n]``, else None)."""

    tree: FeatureTree
    length: Array | None


def features(
    group: Group,
    tensors: Mapping[str, Array],
    folds: Sequence[Fold],
    *,
    beta: float,
    distance: Distance = "ward",
    match: Match = "joint",
    normalize: bool = False,
    most: int | None = None,
) -> Features:
    """Measure a group. Holds ``[n, n]`` float64 (up to three of them) and one tensor at a time.

    distance: see :mod:`nett.merge.feature_tree`. match: the weights that make a unit and those that read it, or only
    the former. normalize: units are compared, and merged, after each was divided by the length of the weights that
    make it, and the weights that read it multiplied by that: the same function where the activation is positively
    homogeneous.
    """
    made = np.zeros((group.size, group.size))
    apart = distance == "paper" or (normalize and match == "joint")
    read = np.zeros_like(made) if apart else made
    hashes = [xxhash.xxh3_128() for _ in range(group.size)]
    for role, rows in parts(group, tensors, folds):
        if role == "consumer" and match == "producers":
            continue
        total = read if role == "consumer" else made
        total += rows @ rows.T
        for digest, row in zip(hashes, rows, strict=True):
            digest.update(memoryview(row))
    length = None
    if normalize:
        length = np.sqrt(np.diagonal(made))
        length = np.where(length > 0, length, 1.0)
        made /= length[:, None] * length
        if apart:
            read *= length[:, None] * length
    same = np.unique([h.digest() for h in hashes], return_inverse=True)[1]
    summed = None
    if distance == "paper":
        summed = made.copy(), read
        squared_distances(made, same)
        squared_distances(read, same)
        made += read
    else:
        if apart:
            made += read
        squared_distances(made, same)
    return Features(feature_tree(group.name, made, beta=beta, most=most, summed=summed), length)


def parts(group: Group, tensors: Mapping[str, Array], folds: Sequence[Fold]) -> Iterator[tuple[str, Array]]:
    """(role, ``[n, m]`` float64) for each tensor that units lie in, as it is with every BatchNorm folded.

    A folded normalisation is one vector, the shift, which holds its layer's bias too. A tensor of two names is told
    once; negative zeros are zeros.
    """
    norms, layers = {f.norm: f for f in folds}, {f.layer: f for f in folds}
    seen: list[tuple[int, int]] = []
    for place in group.places:
        if place.tensor not in tensors or (id(tensors[place.tensor]), place.axis) in seen:
            continue
        seen.append((id(tensors[place.tensor]), place.axis))
        layer, _, local = place.tensor.rpartition(".")
        role = "consumer" if place.role == "consumer" else "producer"
        if layer in norms:
            if local != "running_mean":
                continue
            values = norms[layer].shift
        elif layer in layers and local == "bias":
            continue
        else:
            values = tensors[place.tensor].astype(np.float64)
            if layer in layers:
                values = values * layers[layer].scale.reshape(-1, *[1] * (values.ndim - 1))
        yield role, np.ascontiguousarray(place.units(values) + 0.0)


def merging_map(
    group: Group, found: Features, merges: int, tensors: Mapping[str, Array], folds: Sequence[Fold]
) -> GroupMap:
    """What ``merges`` merges make of a group: mean of what makes the units, sum of what reads them.

    Where a normalisation follows, the mean is that of the folded weights; they are written back unfolded, with the
    scale of the member whose scale is largest, so that units that did not merge keep every bit and the new mean and
    shift are exact.
    """
    labels = found.tree.labels(merges)
    share = 1 / np.bincount(labels)[labels]
    ratio = np.ones(group.size)
    if found.length is not None:  # in units of the first member
        first = np.unique(labels, return_index=True)[1]
        ratio = found.length[first][labels] / found.length
    of: dict[str, UnitMap] = {}
    for fold in folds:
        place = _place_of(group, f"{fold.norm}.running_mean")
        if place is None:
            continue
        scale = place.units(fold.scale)  # [n, run]
        chosen = _largest(np.abs(scale), labels)
        reference = np.take_along_axis(scale, chosen[labels], axis=0)
        weight = (
            share[:, None] * ratio[:, None] * np.divide(scale, reference, out=np.ones_like(scale), where=reference != 0)
        )
        mixed, plain = UnitMap.of_labels(labels, weight), UnitMap.of_labels(labels, share * ratio)
        of |= dict.fromkeys((f"{fold.layer}.weight", f"{fold.layer}.bias", f"{fold.norm}.running_mean"), mixed)
        one = np.zeros_like(scale)
        np.put_along_axis(one, chosen, 1.0, axis=0)
        of |= dict.fromkeys((f"{fold.norm}.weight", f"{fold.norm}.running_var"), UnitMap.of_labels(labels, one))
        of[f"{fold.norm}.bias"] = plain
    return GroupMap(UnitMap.of_labels(labels, share * ratio), UnitMap.of_labels(labels, 1 / ratio), of)


def _place_of(group: Group, tensor: str) -> Place | None:
    return next((p for p in group.places if p.tensor == tensor and p.role != "consumer"), None)


def _largest(values: Array, labels: Array) -> Array:
    """``[new, run]``: for each new unit and position the member with the largest value; the first of equals."""
    made = np.zeros((int(labels.max()) + 1, values.shape[1]), np.intp)
    for r in range(values.shape[1]):
        order = np.lexsort((np.arange(len(labels)), -values[:, r], labels))
        made[:, r] = order[np.unique(labels[order], return_index=True)[1]]
    return made
