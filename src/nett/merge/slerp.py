"""Spherical linear interpolation of two checkpoints, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Annotated, Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import UsageError
from nett.core.passes import Total
from nett.core.registry import Between, method
from nett.core.sums import dot

COLLINEAR = 0.9995  # beyond this cosine the arc is a line for any practical purpose, and sin(theta) too small


@method(
    title="SLERP",
    needs=["base"],
    identity={"t": 1.0},
    mergekit={"required": ["t"], "models": 1},
)
def slerp(
    base: Array, tuned: Sequence[Array], *, t: Annotated[float, Between(0, 1)] = 0.5
) -> Generator[Sequence[Total], list[Any], Array]:
    """Walk along the arc between two models: t = 0 is the base, t = 1 the other.

    Formula: merged = sin((1-t) theta)/sin(theta) a + sin(t theta)/sin(theta) b,  cos(theta) = a.b / (|a| |b|)
    Args:
        t: how far to go from the base to the other model.
    When to use: two models of one base, where averaging shrinks the norm of the weights.
    When not: more than two models. Nearly parallel tensors (|cos theta| > 0.9995) are interpolated linearly.
    Cost: reads both models twice: norms and cosine first.
    Source: Shoemake 1985, section 3.3.
    """
    if len(tuned) != 1:
        raise UsageError(f"slerp goes from the base to one model, but {len(tuned)} were given")
    (other,) = tuned
    (sums,) = yield [Total({"aa": dot(base, base), "bb": dot(other, other), "ab": dot(base, other)})]
    a, b = base.astype(np.float64), other.astype(np.float64)
    size_a, size_b = math.sqrt(sums["aa"]), math.sqrt(sums["bb"])
    cosine = sums["ab"] / ((size_a if size_a > 1e-8 else 1.0) * (size_b if size_b > 1e-8 else 1.0))
    cosine = max(-1.0, min(1.0, cosine))
    if abs(cosine) > COLLINEAR:
        return ((1 - t) * a + t * b).astype(base.dtype)
    theta = math.acos(cosine)
    left, right = math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)
    return (left * a + right * b).astype(base.dtype)
