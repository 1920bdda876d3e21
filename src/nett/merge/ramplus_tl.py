"""Reinforced Agent Merging, with what a task alone changed made stronger the more of it is shared elsewhere."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.passes import Total
from nett.core.registry import Between, method
from nett.merge.ram import changes


@method(title="RAM+, tensor-local", needs=["base"], identity={"epsilon": 0.0, "r": 0.0}, mergekit={"ignored": []})
def ramplus_tl(
    base: Array,
    tuned: Sequence[Array],
    *,
    r: Annotated[float, Between(0)] = 0.1,
    alpha: Annotated[float, Between(0)] = 0.2,
    epsilon: Annotated[float, Between(0)] = 1e-5,
) -> Generator[Sequence[Any], list[Any], Array]:
    """As ram, with the entries that only one model changed times 1 + r * its ratio of shared to own entries.

    Formula: merged = base + sum_i c_i l_i d_i / max(1, sum_j c_j),  l_i = 1 + r min(shared_i / own_i, alpha) where
             only model i changed the entry, else 1
    Args:
        r: how strongly the ratio counts.
        alpha: the ratio beyond which nothing is added.
        epsilon: changes up to this size count as none.
    When to use: as ram, where averaging of shared entries has weakened a task.
    When not: as ram.
    Cost: reads every model twice; ratios are counted tensor by tensor.
    Source: Reinforced Agent Merging 2026 (arXiv 2601.13572), section 3.
    """
    deltas = [model - base for model in tuned]
    changed = np.stack([np.abs(delta) > epsilon for delta in deltas])
    alone = changed.sum(axis=0) == 1
    parts = {}
    for i, one in enumerate(changed):
        parts[f"own{i}"] = float(np.count_nonzero(one & alone))
        parts[f"shared{i}"] = float(np.count_nonzero(one & ~alone))
    (said,) = yield [Total(parts)]
    ratios = [said[f"shared{i}"] / max(said[f"own{i}"], 1e-5) for i in range(len(deltas))]
    total, count = changes(deltas, [1 + r * min(ratio, alpha) for ratio in ratios], epsilon)
    total /= np.maximum(count, 1)
    total += base
    return total.astype(base.dtype)
