"""Arcee Fusion: the other model's weight where it matters most, the base's elsewhere."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import UsageError
from nett.core.ranks import Ranks
from nett.core.registry import method

_QUARTILES = (0.25, 0.5, 0.75)
_LEAST = 1e-8  # added to probabilities before their ratio


@method(title="Arcee Fusion", needs=["base"], rows=True, mergekit={"models": 1})
def arcee_fusion(base: Array, tuned: Sequence[Array]) -> Generator[Sequence[Any], list[Any], Array]:
    """Take over the weights whose change is large in a row whose distribution changed much.

    Formula: merged = x where s >= median(s) + 1.5 (q75(s) - q25(s)), else base,
             s = |x - base| * KL(softmax(row of x), softmax(row of base))
    When to use: to take the salient part of a second model over into a strong base.
    When not: more than two models, or models of different bases.
    Cost: reads both models three times. The quartiles are exact, where mergekit samples
        tensors of more than a million entries at random.
    Source: Arcee AI 2025, Arcee Fusion (its description and mergekit's documentation; no paper).
    """
    if len(tuned) != 1:
        raise UsageError(f"arcee_fusion takes the base and one model, but {len(tuned)} were given")
    (other,) = tuned
    if base.size == 0:
        return base.copy()
    width = base.shape[-1] if base.ndim else 1
    rows, other_rows = base.reshape(-1, width), other.reshape(-1, width)
    score = np.abs(other_rows - rows) * divergence(other_rows, rows)
    (quartiles,) = yield [Ranks(score, lambda size: [int(np.float32(q) * np.float32(size - 1)) for q in _QUARTILES])]
    low, middle, high = (score.dtype.type(q) for q in quartiles)
    least = middle + score.dtype.type(1.5) * (high - low)
    return np.where(score >= least, other_rows, rows).reshape(base.shape)


def divergence(a: Array, b: Array) -> Array:
    """KL(softmax(a), softmax(b)) of rows [n, width], as [n, 1]."""
    p, q = _softmax(a), _softmax(b)
    return np.asarray(np.sum(p * np.log(p / q), axis=1, keepdims=True))


def _softmax(rows: Array) -> Array:
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    powers += rows.dtype.type(_LEAST)
    return np.asarray(powers)
