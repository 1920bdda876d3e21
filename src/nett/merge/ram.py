"""Reinforced Agent Merging: entries that one task alone changed stay whole, shared ones are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from nett.core.dtypes import Array
from nett.core.registry import Between, method


@method(title="RAM", needs=["base"], identity={"epsilon": 0.0}, mergekit={"ignored": []})
def ram(base: Array, tuned: Sequence[Array], *, epsilon: Annotated[float, Between(0)] = 1e-5) -> Array:
    """Add what only one model changed as it is, and the mean of what several changed.

    Formula: merged = base + sum_i c_i d_i / max(1, sum_j c_j),  d_i = x_i - base,  c_i = [|d_i| > epsilon]
    Args:
        epsilon: changes up to this size count as none.
    When to use: agents tuned by reinforcement learning, whose task vectors are sparse and differ in place.
    When not: dense fine-tunes: every entry is shared then, and this is the average.
    Cost: reads every model once.
    Source: Reinforced Agent Merging 2026 (arXiv 2601.13572), section 3.
    """
    total, count = changes([model - base for model in tuned], [1.0] * len(tuned), epsilon)
    total /= np.maximum(count, 1)
    total += base
    return total.astype(base.dtype)


def changes(deltas: Sequence[Array], factors: Sequence[float], epsilon: float) -> tuple[Array, Array]:
    """The sum of the entries that changed, and how many models changed each; where only one did, times its factor."""
    changed = [np.abs(delta) > epsilon for delta in deltas]
    count = np.asarray(np.sum(np.stack(changed), axis=0, dtype=np.int64))
    total = np.zeros(deltas[0].shape, np.float64)
    for delta, one, factor in zip(deltas, changed, factors, strict=True):
        total += delta * one * np.where(count == 1, factor, 1.0)
    return total, count
