"""Scales of a layer's inputs that are folded into the tensor before: what AWQ and SmoothQuant have in common."""

from __future__ import annotations

from nett.weights.protocol import Tensor

_FLOOR, _CEILING = 1e-4, 1e4  # of a scale, around 1


def tied(values: Tensor, source: Tensor) -> Tensor:
    """Positive ``values`` [in], each replaced by the geometric mean of those that follow the same entry before."""
    count = int(source.max()) + 1
    sums = values.new_zeros(count).index_add_(0, source, values.log())
    often = values.new_zeros(count).index_add_(0, source, values.new_ones(len(values)))
    mean: Tensor = (sums / often.clamp(min=1)).exp()[source]
    return mean


def positive(values: Tensor) -> Tensor:
    """``values`` [in] >= 0 with those that are next to nothing lifted, so that logarithms and quotients exist."""
    floor = values.mean() * _FLOOR
    found: Tensor = values.float().clamp(min=float(floor) or 1.0)
    return found


def around_one(scale: Tensor) -> Tensor:
    """The scale with its smallest and largest entry as far below 1 as above it."""
    found: Tensor = (scale / (scale.max() * scale.min()).sqrt()).clamp(_FLOOR, _CEILING)
    return found
