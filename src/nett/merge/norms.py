"""Norms and angles of whole tensors, from sums that are gathered chunk by chunk."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.passes import Total
from nett.core.sums import dot


def gram(arrays: Sequence[Array]) -> Generator[Sequence[Any], list[Any], Array]:
    """All dot products of some tensors with each other, [n, n] in float64: norms and angles follow from it."""
    count = len(arrays)
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    (sums,) = yield [Total({f"{i} {j}": dot(arrays[i], arrays[j]) for i, j in pairs})]
    found = np.zeros((count, count))
    for i, j in pairs:
        found[i, j] = found[j, i] = sums[f"{i} {j}"]
    return found


def combined(arrays: Sequence[Array], coefficients: Sequence[float]) -> Array:
    """Sum of coefficient * array, reckoned in float64, in the arrays' own type."""
    total = np.zeros(arrays[0].shape, np.float64)
    for array, coefficient in zip(arrays, coefficients, strict=True):
        if coefficient:
            total += array.astype(np.float64) * coefficient
    return total.astype(arrays[0].dtype)


def same_l1(before: Sequence[Array], after: Sequence[Array]) -> Generator[Sequence[Any], list[Any], list[Array]]:
    """``after``, each times what gives it the L1 norm of ``before`` over the tensor."""
    parts = {}
    for i, (delta, kept) in enumerate(zip(before, after, strict=True)):
        parts[f"before{i}"] = float(np.abs(delta).sum(dtype=np.float64))
        parts[f"after{i}"] = float(np.abs(kept).sum(dtype=np.float64))
    (sums,) = yield [Total(parts)]
    found = []
    for i, kept in enumerate(after):
        was, now = sums[f"before{i}"], sums[f"after{i}"]
        found.append(kept * kept.dtype.type(was / now) if was >= 1e-7 and now >= 1e-7 and was != now else kept)
    return found
