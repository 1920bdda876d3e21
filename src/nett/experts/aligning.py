"""Neurons of one expert in the order of another's: the same function, of weights that can be averaged.

An expert y = down (act(gate x) * up x) is the same with its neurons in any order: rows of gate and up, columns of down.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nett.core.assignment import assigned
from nett.core.dtypes import Array
from nett.experts.protocol import Experts, Tensor


def products(experts: Experts, first: int, second: int) -> Tensor:
    """[I, I]: inner products of the neurons of two experts, over all three matrices, float32."""

    def of(one: Tensor) -> Tensor:
        return one[first].float() @ one[second].float().T

    return of(experts.gate) + of(experts.up) + experts.down[first].float().T @ experts.down[second].float()


def order_like(experts: Experts, leader: int, other: int) -> Array:
    """int64 [I]: the neurons of ``other`` in the order of ``leader``'s, so that the sum of products is largest."""
    return np.asarray(assigned(products(experts, leader, other).cpu().numpy()), np.int64)


def aligned(experts: Experts, leaders: Sequence[int], groups: Sequence[int]) -> Experts:
    """All of them, each with its neurons in the order of the one that leads its group."""
    orders = np.tile(np.arange(experts.width), (len(experts), 1))
    for e, g in enumerate(groups):
        if e != leaders[g]:
            orders[e] = order_like(experts, leaders[g], e)
    return experts.neurons(orders)


def alikeness(experts: Experts, leader: int, other: int) -> float:
    """Cosine of two experts' weights, the second in the order of the first."""
    inner = products(experts, leader, other)
    order = assigned(inner.cpu().numpy())
    norms = [
        sum(float(t[e].float().square().sum()) for t in (experts.gate, experts.up, experts.down))
        for e in (leader, other)
    ]
    scale = float(np.sqrt(norms[0] * norms[1]))
    return float(inner.cpu().numpy()[np.arange(len(order)), order].astype(np.float64).sum()) / scale if scale else 0.0
