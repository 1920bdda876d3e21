"""TALL-masks (P04): one multi-task vector, and a bit for each weight and task."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from nett.core.dtypes import Array
from nett.core.registry import Between, Tunable, method
from nett.merge.multi_task import multi_task_vector, task_mask
from nett.merge.protocol import for_each


@method(
    papers=["P04"],
    title="TALL-masks",
    needs=["base"],
    outputs=["multi_task_vector", "mask*:bits"],
    restore="unmask",
)
def tall_masks(
    base: Array,
    tuned: Sequence[Array],
    *,
    mask_lambda: Annotated[
        float | Sequence[float], Between(0, open_low=True), Tunable((0.2, 0.3, 0.4, 0.5, 0.6))
    ] = 0.4,
    over: Literal["task_arithmetic", "ties"] = "task_arithmetic",
    density: Annotated[float, Between(0, 1)] = 0.2,
) -> Generator[Sequence[Any], list[Any], dict[str, Any]]:
    """Keep one multi-task vector and, for each task, the mask of the weights that it needs.

    Formula: mask_t = |tau_t| > lambda_t |tau_MT - tau_t|,   task t is rebuilt as base + mask_t * tau_MT
    Args:
        mask_lambda: how strict the masks are (larger is sparser); one value, one for each task, or auto with --eval.
        over: the multi-task vector is the sum of the task vectors, or what TIES-Merging makes of them.
        density: share kept of each task vector; only with over ties.
    When to use: many fine-tunes of one base that must all stay available near their own accuracy.
    When not: when one model must serve all tasks at once, without knowing which task a request belongs to.
    Guarantee: measured. A rebuilt task is close to its fine-tune, not equal; the receipt holds the distance.
    Cost: base, one vector, and one bit for each weight and task, instead of one checkpoint for each task.
    Source: P04, equations 3 to 5.
    """
    lambdas = for_each(mask_lambda, len(tuned), "mask_lambda")
    deltas = [model - base for model in tuned]
    vector = yield from multi_task_vector(deltas, over=over, density=density)
    masks = [task_mask(d, vector, strictness) for d, strictness in zip(deltas, lambdas, strict=True)]
    return {"multi_task_vector": vector, "mask*": masks}


def unmask(base: Array, multi_task_vector: Array, mask: Array) -> Array:
    """The task's checkpoint: base + mask * multi_task_vector (P04, equation 3)."""
    return np.asarray(base + multi_task_vector * mask)
