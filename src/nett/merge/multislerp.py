"""Interpolation of many models on a sphere: the direction of their mean direction, with their mean length."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from math import sqrt
from typing import Annotated, Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import UsageError
from nett.core.registry import Between, method
from nett.merge.norms import combined, gram
from nett.merge.protocol import for_each


@method(
    title="Multi-SLERP", identity={}, mergekit={"rename": {"normalize_weights": "normalize"}, "required": ["weight"]}
)
def multislerp(
    base: Array | None,
    tuned: Sequence[Array],
    *,
    weight: float | Sequence[float] = 1.0,
    normalize: bool = True,
    eps: Annotated[float, Between(0, open_low=True)] = 1e-8,
) -> Generator[Sequence[Any], list[Any], Array]:
    """Barycentre of several models, or with --base of their task vectors, on the sphere, tensor by tensor.

    Formula: merged = base + (sum_i w_i |x_i|) m / |m|,  m = sum_i w_i x_i / |x_i|
    Args:
        weight: weight of a model; one value, or one for each model.
        normalize: divide the weights by their sum.
        eps: added to norms before they divide; a mean direction shorter than this is none.
    When to use: more than two models whose average would be too short.
    When not: models that cancel out: the mean has no direction then, and the merge is refused.
    Cost: reads every model twice.
    Source: Goddard 2025, Multi-SLERP. A point projected to the tangent space at the mean direction and averaged
        there gives zero, so the exponential map returns to the mean direction: the formula above is all of it.
    """
    weights = for_each(weight, len(tuned), "weight")
    points = [model - base for model in tuned] if base is not None else list(tuned)
    if len(tuned) == 1:
        return np.array(tuned[0])
    total = sum(weights)
    if normalize:
        if total == 0:
            raise UsageError("the weights add up to zero, so they cannot be normalized", where="merge/multislerp")
        weights = [w / total for w in weights]
    products = yield from gram(points)
    norms = np.sqrt(np.diag(products))
    shares = np.array(weights) / (norms + eps)
    length = sqrt(max(0.0, float(shares @ products @ shares)))
    if length >= eps:
        merged = combined(points, list(shares * float(norms @ np.array(weights)) / length))
    elif len(points) == 2 or not norms.any():
        merged = combined(points, weights)
    else:
        raise UsageError(
            "the models' directions cancel out, so their mean has none",
            where="merge/multislerp",
            hint="Use other weights, or linear.",
        )
    if base is not None:
        merged += base
    return merged
