"""Rounding a matrix to whole numbers with a scale for each group of columns, as compressed-tensors defines it.

Around zero: ``scale = max|w| / ((2^bits - 1) / 2)``; else ``scale = (max - min) / (2^bits - 1)`` over a range that holds
zero, ``zero = round(-2^(bits-1) - min / scale)``. Scales are rounded to the model's type before anything is
rounded by them, so that the numbers are the nearest ones to what is loaded.
"""

from __future__ import annotations

from typing import Any

from nett.core.errors import Refused
from nett.weights.protocol import Quantised, Tensor

GROUPS = (128, 64, 32)
_SHRINKS = tuple(1 - i / 40 for i in range(29))  # 1 down to 0.3 of the range


def group_for(columns: int, group: int) -> int:
    """Columns that share a scale: ``group`` itself; for 0 the largest of 128, 64 and 32 that divides them, else (and
    for -1) all of them. Refused where it does not divide them."""
    if group == 0:
        return next((g for g in GROUPS if columns % g == 0), columns)
    if group == -1:
        return columns
    if columns % group:
        raise Refused(f"a row of {columns} columns cannot be cut into groups of {group}")
    return group


def grouped(matrix: Tensor, group: int) -> Tensor:
    """``[out, in]`` as ``[out, groups, group]`` in float32."""
    return matrix.float().reshape(matrix.shape[0], -1, group)


def scales(
    weight: Tensor, group: int, bits: int, *, symmetric: bool, weigh: Tensor | None = None, search: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Scale ``[out, groups]`` in the type of ``weight``, and zero points (int8) where not ``symmetric``.

    search: of 29 ranges from the whole down to 0.3 of it, for each group the one with the least squared error, each
    column's ``weigh``\\ ed.
    """
    values = grouped(weight, group)
    best = _scale(values, 1.0, bits, symmetric, weight.dtype)
    if not search:
        return best
    weighing = 1.0 if weigh is None else weigh.float().reshape(1, -1, group)
    least = _error(values, *best, bits, weighing)
    scale, zero = best
    for shrink in _SHRINKS[1:]:
        s, z = _scale(values, shrink, bits, symmetric, weight.dtype)
        error = _error(values, s, z, bits, weighing)
        better = error < least
        least, scale = least.where(~better, error), scale.where(~better, s)
        zero = zero.where(~better, z) if zero is not None and z is not None else None
    return scale, zero


def _scale(values: Tensor, shrink: float, bits: int, symmetric: bool, dtype: Any) -> tuple[Tensor, Tensor | None]:
    import torch

    if symmetric:
        scale = values.abs().amax(-1) * (shrink / ((2**bits - 1) / 2))
        return _positive(scale.to(dtype)), None
    low, high = (values.amin(-1) * shrink).clamp(max=0), (values.amax(-1) * shrink).clamp(min=0)
    scale = _positive(((high - low) / (2**bits - 1)).to(dtype))
    zero = (-(2 ** (bits - 1)) - low / scale.float()).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return scale, zero.to(torch.int8)


def _positive(scale: Tensor) -> Tensor:
    """Groups of zeros have the scale 1: their numbers are zeros."""
    return scale.where(scale > 0, scale.new_ones(()))


def _error(values: Tensor, scale: Tensor, zero: Tensor | None, bits: int, weigh: Any) -> Tensor:
    wide, shift = scale.float().unsqueeze(-1), 0 if zero is None else zero.float().unsqueeze(-1)
    codes = (values / wide + shift).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    error: Tensor = (((codes - shift) * wide - values).square() * weigh).sum(-1)
    return error


def nearest(weight: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Quantised:
    """Every entry of ``[out, in]`` at the nearest number of its group."""
    import torch

    values = grouped(weight, weight.shape[1] // scale.shape[1])
    shift = 0 if zero is None else zero.float().unsqueeze(-1)
    codes = (values / scale.float().unsqueeze(-1) + shift).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return Quantised(codes.to(torch.int8).reshape(weight.shape), scale, zero, bits)
