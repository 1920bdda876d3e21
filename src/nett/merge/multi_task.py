"""The multi-task vector and the masks of its tasks: what tall_masks and consensus share (P04)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Literal

import numpy as np

from nett.core.dtypes import Array
from nett.core.order import Largest
from nett.merge.election import elect_and_average

Over = Literal["task_arithmetic", "ties"]


def multi_task_vector(
    deltas: Sequence[Array], *, over: Over, density: float
) -> Generator[Sequence[Any], list[Any], Array]:
    """tau_MT: the sum of the task vectors, or the sum of those that TIES trims and elects (P04, section 4.1)."""
    if over == "task_arithmetic":
        total = deltas[0].copy()
        for delta in deltas[1:]:
            total += delta
        return total
    cuts = yield [Largest(d, density, "all", "model") for d in deltas]
    trimmed = [cut.trim(d) for cut, d in zip(cuts, deltas, strict=True)]
    merged: Array = yield from elect_and_average(
        trimmed,
        [1.0] * len(trimmed),
        weight_in_election=False,
        zero_sign="majority",
        normalize=False,
        scope="model",
    )
    return merged


def task_mask(delta: Array, vector: Array, mask_lambda: float) -> Array:
    """m_t = 1{ |tau_t| > lambda_t |tau_MT - tau_t| }, strictly (P04, equation 4)."""
    return np.asarray(np.abs(delta) > delta.dtype.type(mask_lambda) * np.abs(vector - delta))
