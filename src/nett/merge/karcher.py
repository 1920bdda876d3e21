"""Karcher mean: the point of the sphere with the least squared distance to all models."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from math import acos, cos, sin, sqrt
from typing import Annotated, Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.registry import Between, method
from nett.merge.norms import combined, gram


@method(title="Karcher mean", identity={}, symmetric=False, mergekit={"ignored": []})
def karcher(
    tuned: Sequence[Array],
    *,
    max_iter: Annotated[int, Between(0)] = 10,
    tol: Annotated[float, Between(0, open_low=True)] = 1e-5,
) -> Generator[Sequence[Any], list[Any], Array]:
    """Riemannian mean of the models' directions, with their mean length, tensor by tensor.

    Formula: merged = mean_i |x_i| * argmin_{|m| = 1} sum_i arccos(m . x_i / |x_i|)^2
    Args:
        max_iter: most steps of the iteration.
        tol: length of a step that ends it; also the norm below which a tensor counts as zero.
    When to use: several models of one base as equals, where the average is too short.
    When not: task vectors that are nearly orthogonal; averaging differs little then.
    Cost: reads every model twice: all iterations run on the dot products of the models, not on their weights.
    Source: Karcher 1977; the iteration is that of Krakowski et al. 2007, section 3, on the unit sphere.
    """
    count = len(tuned)
    if count == 1:
        return np.array(tuned[0])
    products = yield from gram(tuned)
    norms = np.sqrt(np.diag(products))
    valid = [i for i in range(count) if norms[i] > tol]
    if not valid:
        return np.zeros_like(tuned[0])
    units = products[np.ix_(valid, valid)] / np.outer(norms[valid], norms[valid])
    mean = directions(units, max_iter, tol)
    coefficients = np.zeros(count)
    coefficients[valid] = mean / norms[valid] * (norms.sum() / count)
    return combined(tuned, list(coefficients))


def directions(units: Array, max_iter: int, tol: float) -> Array:
    """The Karcher mean of unit vectors, as coefficients of them, from their dot products [n, n]."""
    count = len(units)
    mean = np.full(count, 1 / count)
    length = sqrt(max(0.0, float(mean @ units @ mean)))
    mean = mean / length if length >= tol else np.eye(count)[0]
    for _ in range(max_iter):
        step = np.zeros(count)
        for i in range(count):
            cosine = max(-1.0, min(1.0, float(units[i] @ mean)))
            theta = acos(cosine)
            if theta >= tol:
                away = -cosine * mean
                away[i] += 1
                step += theta / sin(theta) / count * away
        length = sqrt(max(0.0, float(step @ units @ step)))
        if length < tol:
            break
        mean = cos(length) * mean + sin(length) / length * step
        size = sqrt(max(0.0, float(mean @ units @ mean)))
        mean = mean / size if size > tol else mean
    return mean
