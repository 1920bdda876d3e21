"""Groups of experts become one each: aligned to the expert that leads the group, averaged, and split where asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.experts.aligning import aligned, alikeness
from nett.experts.grouping import joined_to
from nett.experts.protocol import Experts, Layer, Merged, Tensor
from nett.experts.splitting import split


def merged(
    layer: Layer,
    leaders: Sequence[int],
    groups: Sequence[int] | None,
    counts: Tensor,
    *,
    align: bool,
    by: str,
    rank: float,
    rows: float,
) -> Merged:
    """The answer for one layer. groups: None to join by the weights. counts: float64 [E], what each expert counts."""
    experts = layer.read()
    if groups is None:
        groups = joined_to(leaders, near_in_weights(experts, leaders))
    if align:
        experts = aligned(experts, leaders, groups)
    made = experts.mean(shares(leaders, groups, counts, by))
    alone = [g for g in range(len(leaders)) if list(groups).count(g) == 1]
    for g in alone:  # not touched, so not rounded either
        for to, of in ((made.gate, experts.gate), (made.up, experts.up), (made.down, experts.down)):
            to[g] = of[leaders[g]]
    record: dict[str, Any] = {"counts": [int(c) for c in counts.tolist()]}
    parts = None
    if rank < 1:
        parts, about = split(made, rank, rows)
        record |= about
    return Merged(made, list(groups), list(leaders), record, parts)


def near_in_weights(experts: Experts, leaders: Sequence[int]) -> Array:
    """[E, E]: cosine of each expert's weights with each leader's, aligned; 0 in the other columns."""
    found = np.zeros((len(experts), len(experts)))
    for e in range(len(experts)):
        for leader in leaders:
            if e not in leaders:
                found[e, leader] = alikeness(experts, leader, e)
    return found


def shares(leaders: Sequence[int], groups: Sequence[int], counts: Tensor, by: str) -> Tensor:
    """float64 [G, E]: what each expert counts in the mean of its group; rows sum to 1."""
    import torch

    weight = {"frequency": counts.double(), "equal": torch.ones(len(groups), dtype=torch.float64)}.get(by)
    if weight is None:  # the leader alone
        weight = torch.zeros(len(groups), dtype=torch.float64)
        weight[list(leaders)] = 1.0
    found = torch.zeros((len(leaders), len(groups)), dtype=torch.float64)
    found[list(groups), torch.arange(len(groups))] = weight
    return found / found.sum(1, keepdim=True)
