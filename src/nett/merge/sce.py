"""SCE: select by variance, calculate weights, erase the minority."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.passes import Total
from nett.core.ranks import Ranks
from nett.core.registry import Between, method
from nett.core.sums import dot


@method(
    title="SCE",
    needs=["base"],
    identity={"select_topk": 1.0},
    mergekit={"defaults": {"select_topk": 1.0}, "ignored": ["int8_mask"]},
)
def sce(
    base: Array, tuned: Sequence[Array], *, select_topk: Annotated[float, Between(0, 1)] = 0.1
) -> Generator[Sequence[Any], list[Any], Array]:
    """Keep the entries in which the models differ most, weigh each model by its own, and drop the minority's sign.

    Formula: merged = base + sum_i w_i [sign agrees] d_i / sum_i w_i [sign agrees],  w_i = |d_i|^2 / sum_j |d_j|^2,
             d_i = (x_i - base) where the variance over the models is in its top share, else 0
    Args:
        select_topk: share of the entries in which the models differ that is kept, those of largest variance first.
    When to use: models that were tuned towards one base from different teachers (knowledge fusion).
    When not: a single model, or models of nearly equal task vectors, in which no variance tells anything.
    Cost: reads every model four times, once with select_topk 1.
    Source: Wan et al. 2024, FuseChat, section 3.3.
    """
    deltas = [model - base for model in tuned]
    if select_topk < 1:
        variance = np.var(np.stack(deltas), axis=0, dtype=np.float64).astype(base.dtype)
        (said,) = yield [Total({"differ": float(np.count_nonzero(variance)), "size": float(variance.size)})]
        kept = int(said["differ"] * select_topk)
        if kept == 0:
            return base.copy()
        (cut,) = yield [Ranks(variance, lambda size: [size - kept])]
        chosen = (variance >= cut[0]) & (variance > 0)
        deltas = [delta * chosen for delta in deltas]
    (squares,) = yield [Total({str(i): dot(delta, delta) for i, delta in enumerate(deltas)})]
    total = sum(squares.values())
    weights = [squares[str(i)] / total if total > 0 else 1 / len(deltas) for i in range(len(deltas))]
    positive = np.sum(np.stack(deltas), axis=0, dtype=np.float64) >= 0
    merged, divisor = np.zeros(base.shape), np.zeros(base.shape)
    for delta, weight in zip(deltas, weights, strict=True):
        agreeing = weight * np.where(positive, delta > 0, delta < 0)
        merged += agreeing * delta
        divisor += agreeing
    np.divide(merged, divisor, out=merged, where=divisor > 0)
    merged += base
    return merged.astype(base.dtype)
