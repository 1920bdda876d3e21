"""SLERP of two models or of two task vectors, with weights; of whole tensors, of rows or of columns."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import UsageError
from nett.core.passes import Sum
from nett.core.registry import method
from nett.merge.norms import combined, gram
from nett.merge.protocol import for_each

_LEAST = 1e-7  # norms below count as this
_COLLINEAR = 1e-16  # of sin(theta)^2


@method(
    title="NuSLERP",
    rows={"flatten": False},
    mergekit={
        "rename": {"nuslerp_flatten": "flatten", "nuslerp_row_wise": "row_wise"},
        "required": ["weight"],
        "models": 2,
    },
)
def nuslerp(
    base: Array | None,
    tuned: Sequence[Array],
    *,
    weight: float | Sequence[float] = 1.0,
    flatten: bool = True,
    row_wise: bool = False,
) -> Generator[Sequence[Any], list[Any], Array]:
    """Walk along the arc between two models, or with --base between their task vectors.

    Formula: merged = base + sin((1-t) theta)/sin(theta) a + sin(t theta)/sin(theta) b,  t = w_2 / (w_1 + w_2)
    Args:
        weight: weight of each model; equal weights meet in the middle.
        flatten: one angle for each tensor; otherwise one for each of its rows.
        row_wise: without flatten, an angle for each slice along the first dimension instead of the last.
    When to use: as slerp, from task vectors where both models come from one base.
    When not: more than two models; see multislerp and karcher.
    Cost: reads both models twice.
    Source: Shoemake 1985, section 3.3.
    """
    if len(tuned) != 2:
        raise UsageError(f"nuslerp goes from one model to another, but {len(tuned)} were given")
    weights = for_each(weight, 2, "weight")
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    ends = [np.asarray(model - base) for model in tuned] if base is not None else list(tuned)
    if flatten:
        angles = yield from gram(ends)
        left, right = (float(part) for part in arc(angles[0, 0], angles[1, 1], angles[0, 1], t))
        merged = combined(ends, [left, right])
    else:
        a, b = (end.astype(np.float64) for end in ends)
        products = [x * y for x, y in ((a, a), (b, b), (a, b))]
        if row_wise and a.ndim > 1:
            (said,) = yield [Sum({str(i): p.sum(axis=0) for i, p in enumerate(products)})]
            sums = [said[str(i)] for i in range(3)]
        else:
            sums = [np.sum(p, axis=-1, keepdims=True) if a.ndim else p for p in products]
        lefts, rights = arc(sums[0], sums[1], sums[2], t)
        merged = np.asarray(lefts * a + rights * b).astype(ends[0].dtype)
    if base is not None:
        merged += base
    return merged


def arc(aa: Any, bb: Any, ab: Any, t: float) -> tuple[Array, Array]:
    """The factors of two vectors at t of the arc between them, from their dot products; a line if they are collinear."""
    norms = np.maximum(np.sqrt(aa), _LEAST) * np.maximum(np.sqrt(bb), _LEAST)
    cosine = np.clip(np.asarray(ab) / norms, -1, 1)
    straight = 1 - cosine**2 <= _COLLINEAR
    theta = np.arccos(np.where(straight, 0.0, cosine))
    sine = np.sin(theta)
    return (
        np.where(straight, 1 - t, np.sin((1 - t) * theta) / sine),
        np.where(straight, t, np.sin(t * theta) / sine),
    )
