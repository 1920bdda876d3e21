"""The steps of Sub-MoE on one layer: what is alike, which experts form a cluster, and what a cluster becomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.experts.aligning import aligned
from nett.experts.budgets import shared_counts
from nett.experts.choosing import uniform_counts
from nett.experts.clustering import kmeans, points_of
from nett.experts.grouping import cosines
from nett.experts.merging import shares
from nett.experts.protocol import Experts, Layer, Merged, Tensor
from nett.experts.union import union_mean


def likeness(layers: Sequence[Layer], products: Sequence[Any] | None) -> list[Array]:
    """Cosines ``[E, E]`` for each layer, of inner products; None for those of the weights, which are read for that."""
    if products is not None:
        return [cosines(p) for p in products]
    return [cosines(weight_products(layer.read())) for layer in layers]


def weight_products(experts: Experts) -> Tensor:
    """float64 ``[E, E]``: inner products of experts' weights, neuron by neuron as they stand."""
    flat = [t.float().flatten(1) for t in (experts.gate, experts.up, experts.down)]
    return sum((f @ f.T).double() for f in flat)  # type: ignore[return-value]


def numbers_of(layers: Sequence[Layer], near: Sequence[Array], keep: float, spread: str, adjacent: int) -> list[int]:
    """How many clusters each layer becomes."""
    if spread == "uniform":
        return uniform_counts(layers, keep)
    costs = []
    for layer, alike in zip(layers, near, strict=True):
        points = points_of(alike)
        costs.append(
            [kmeans(points, max(layer.least, number))[1] for number in range(layer.count)] + [0.0]
        )  # each alone costs nothing
    return shared_counts(layers, keep, costs, adjacent)


def groups_of(
    layer: Layer, alike: Array, number: int, counts: Array, *, seed: int | None = None
) -> tuple[list[int], list[int], float]:
    """The most used expert of each of ``number`` clusters (equally many of each pool), in ascending order; the cluster of
    each expert; and the sum of squared distances within clusters. seed: draws the members, and leaves the sizes."""
    labels, inertia, each = np.empty(layer.count, np.int64), 0.0, number // len(layer.pools)
    for p, pool in enumerate(layer.pools):
        inside = np.asarray(list(pool))
        points = points_of(alike[np.ix_(inside, inside)])
        found, lost = (np.arange(len(inside)), 0.0) if each == len(inside) else kmeans(points, each)
        if seed is not None:
            found = np.random.default_rng(seed).permutation(found)
            lost = float("nan")
        labels[inside] = p * each + found
        inertia += lost
    best = [int(max(np.flatnonzero(labels == g), key=lambda e: (counts[e], -e))) for g in range(number)]
    leaders = sorted(best)
    place = {int(labels[leader]): g for g, leader in enumerate(leaders)}
    return leaders, [place[int(g)] for g in labels], inertia


def merged_in_subspace(
    layer: Layer,
    leaders: Sequence[int],
    groups: Sequence[int],
    counts: Tensor,
    *,
    by: str,
    rank: float,
    align: bool,
    inertia: float,
) -> Merged:
    """The answer for one layer. counts: float64 [E], what each expert counts."""
    experts = layer.read()
    if align:
        experts = aligned(experts, leaders, groups)
    weights = shares(leaders, groups, counts, by)
    record: dict[str, Any] = {"counts": [int(c) for c in counts.tolist()]}
    if inertia == inertia:
        record["distances_within"] = round(inertia, 6)
    if rank < 1:
        made, numbers = _truncated(experts, groups, weights, rank)
        record["numbers_of_whole"] = round(numbers, 4)
    else:  # U S V_i is W_i, so nothing need be decomposed
        made = experts.mean(weights)
        for g, leader in enumerate(leaders):
            if list(groups).count(g) == 1:  # not touched, so not rounded either
                for to, of in ((made.gate, experts.gate), (made.up, experts.up), (made.down, experts.down)):
                    to[g] = of[leader]
    return Merged(made, list(groups), list(leaders), record)


def _truncated(experts: Experts, groups: Sequence[int], weights: Tensor, rank: float) -> tuple[Experts, float]:
    """New experts of the given rank, and the numbers of their factors U_k S_k and V as a share of the whole matrices'."""
    import torch

    made, factors, whole = [], 0, 0
    for matrices in (experts.gate, experts.up, experts.down):
        new = torch.empty((len(weights), *matrices.shape[1:]), dtype=matrices.dtype)
        for g in range(len(weights)):
            members = [e for e, group in enumerate(groups) if group == g]
            some = [matrices[e].double().cpu().numpy() for e in members]
            value, k = union_mean(some, [float(weights[g, e]) for e in members], rank)
            new[g] = torch.from_numpy(value).to(matrices.dtype)
            factors += k * sum(value.shape)
            whole += value.size
        made.append(new)
    return Experts(*made), factors / whole
