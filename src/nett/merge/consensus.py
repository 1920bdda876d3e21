"""Consensus merging (P04): only the weights that several tasks use."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from nett.core.dtypes import Array
from nett.core.registry import Between, Tunable, method
from nett.merge.multi_task import multi_task_vector, task_mask
from nett.merge.protocol import for_each, weighted


@method(
    papers=["P04"],
    title="Consensus merging",
    needs=["base"],
    identity={"min_tasks": 0, "scale": 1.0},
    symmetric=True,
)
def consensus(
    base: Array,
    tuned: Sequence[Array],
    *,
    over: Literal["task_arithmetic", "ties"] = "task_arithmetic",
    min_tasks: Annotated[int, Between(0)] = 2,
    scale: Annotated[float, Tunable((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0))] = 0.5,
    mask_lambda: Annotated[float | Sequence[float], Between(0, open_low=True)] = 0.4,
    density: Annotated[float, Between(0, 1)] = 0.2,
) -> Generator[Sequence[Any], list[Any], Array]:
    """Drop the weights of the multi-task vector that no task, or only one task, needs; add the rest to the base.

    Formula: merged = base + scale * [ sum_t mask_t >= min_tasks ] * tau_MT
    Args:
        over: the multi-task vector is the sum of the task vectors, or what TIES-Merging makes of them.
        min_tasks: a weight stays where at least so many tasks use it; 0 keeps everything, 1 drops what none uses.
        scale: factor on what stays; tune it on validation data.
        mask_lambda: how strict the masks are (larger is sparser); one value, or one for each task.
        density: share kept of each task vector; only with over ties.
    When to use: one model for many tasks, as an addition to task arithmetic or TIES-Merging.
    When not: few tasks: with two, min_tasks 2 keeps only what both use.
    Cost: reads every model once, with over ties three to four times.
    Source: P04, section 5, equation 6.
    """
    lambdas = for_each(mask_lambda, len(tuned), "mask_lambda")
    deltas = [model - base for model in tuned]
    vector = yield from multi_task_vector(deltas, over=over, density=density)
    users = np.zeros(vector.shape, np.int32)
    for delta, strictness in zip(deltas, lambdas, strict=True):
        users += task_mask(delta, vector, strictness)
    merged = weighted(vector, scale) * (users >= min_tasks)
    merged += base
    return np.asarray(merged)
