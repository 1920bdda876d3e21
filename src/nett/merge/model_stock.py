"""Model Stock: how far from the base the average of its fine-tunes should stand, from the angle between them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import UsageError
from nett.core.registry import method
from nett.merge.norms import combined, gram

_SINGULAR = 1e-6


@method(title="Model Stock", needs=["base"], symmetric=True, rows={"filter_wise": True}, mergekit={"ignored": []})
def model_stock(
    base: Array, tuned: Sequence[Array], *, filter_wise: bool = False
) -> Generator[Sequence[Any], list[Any], Array]:
    """Interpolate between the base and the average of the fine-tunes, by the angle between their task vectors.

    Formula: merged = t * mean_i x_i + (1 - t) base,  t = n cos / (1 + (n - 1) cos),  cos the mean over all pairs
    Args:
        filter_wise: one angle for each row of a tensor and not for the tensor.
    When to use: two or more fine-tunes of one base for the same task, instead of averaging many of them.
    When not: fine-tunes for different tasks: their task vectors are nearly orthogonal, and t falls to zero.
    Cost: reads every model twice.
    Source: Jang et al. 2024, Model Stock, equations 4 and 6.
    """
    count = len(tuned)
    if count < 2:
        raise UsageError(f"model_stock needs at least two models beside the base, but {count} was given")
    deltas = [np.asarray(model - base) for model in tuned]
    if filter_wise and base.ndim > 1:
        rows = [d.reshape(-1, d.shape[-1]).astype(np.float64) for d in deltas]
        products = np.array([[np.einsum("ij,ij->i", a, b) for b in rows] for a in rows])
        t = ratio(products).reshape(*base.shape[:-1], 1)
        mean = np.sum(np.stack(deltas), axis=0, dtype=np.float64) / count
        return np.asarray(base + t * mean).astype(base.dtype)
    products = yield from gram(deltas)
    step = float(ratio(products)) / count
    merged = combined(deltas, [step] * count)
    merged += base
    return merged


def ratio(products: Array) -> Array:
    """t from the dot products [n, n, ...] of the task vectors; 0 where no finite t exists (opposing updates)."""
    count = len(products)
    norms = np.sqrt(np.array([products[i, i] for i in range(count)]))
    cosines = [
        np.clip(products[i, j] / np.maximum(norms[i] * norms[j], 1e-6), -1, 1)
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = np.mean(cosines, axis=0)
    divisor = 1 + (count - 1) * cosine
    singular = np.abs(divisor) < _SINGULAR
    return np.asarray(np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, divisor)))
