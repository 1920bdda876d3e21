"""Bipolar integers (P56): every weight at an odd multiple of a scale, so that n bits have 2^n levels around zero."""

from __future__ import annotations

from typing import Annotated

from nett.core.registry import Between, method
from nett.weights.grid import group_for, grouped
from nett.weights.protocol import Quantised, Tensor

_SHRINKS = tuple(0.93**i for i in range(28))  # of the range: 1 down to 0.14
_REFITS = 3


@method(papers=["P56"], title="Bipolar integers", grain="tensor")
def bipolar_int(
    weight: Tensor,
    *,
    bits: Annotated[int, Between(1, 7)] = 3,
    group: Annotated[int, Between(-1)] = 0,
    search: bool = True,
) -> Quantised:
    """Round every weight to the nearest odd multiple of a scale shared by a group of columns: 2^bits levels, none of them zero.

    Formula: w ~ scale * sum_i (2 b_i - 1) 2^i: the odd numbers from -(2^bits - 1) to 2^bits - 1
    Args:
        bits: bits of a weight. Files have no such type and take one bit more, in which the odd numbers are codes like
            others: 3 bits as int4 and 7 as int8, which vLLM reads too. Packed planes (as_bipolar) take no more than bits.
        group: neighbouring columns that share a scale; 0 for the largest of 128, 64 and 32 that divides all layers,
            -1 for one scale a row.
        search: of 28 ranges take the one with the least squared error and fit its scale to the weights that it rounds;
            otherwise the scale takes in the largest weight.
    When to use: 1 to 3 bits, where a level at zero is one of few; with packed planes, products of few bits by exclusive or and
        population count.
    When not: 4 bits and more in stock formats, where this has half the levels of their own; sparse weights, since
        there is no zero.
    Cost: 28 roundings of each matrix with search.
    Source: P56, the bipolar format; scales are ours.
    """
    import torch

    values = grouped(weight, group_for(weight.shape[1], group))
    scale = scales(values, bits, search=search).to(weight.dtype)
    scale = scale.where(scale > 0, scale.new_ones(()))  # too small for the type
    odd = nearest(values, scale.float(), bits)
    return Quantised(odd.to(torch.int8).reshape(weight.shape), scale, None, bits + 1)


def nearest(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest of the odd numbers of ``bits`` bits to ``values / scale``; of two that are equally near, the upper.

    values: float32 ``[…, group]``. scale: ``[…]``.
    """
    half = 2 ** (bits - 1)
    odd: Tensor = 2 * (values / (2 * scale.unsqueeze(-1))).floor().clamp(-half, half - 1) + 1
    return odd


def scales(values: Tensor, bits: int, *, search: bool = True) -> Tensor:
    """A positive scale for each group: float32 ``[…]`` of ``values`` ``[…, group]``; 1 where a group is all zeros."""
    top: Tensor = values.abs().amax(-1) / (2**bits - 1)
    top = top.where(top > 0, top.new_ones(()))
    if not search:
        return top
    best, least = top, _error(values, top, bits)
    for shrink in _SHRINKS[1:]:
        best, least = _better(values, top * shrink, bits, best, least)
    for _ in range(_REFITS):
        odd = nearest(values, best, bits)
        fitted = (values * odd).sum(-1) / odd.square().sum(-1)  # least squares, given the numbers
        best, least = _better(values, fitted.where(fitted > 0, best), bits, best, least)
    return best


def _better(values: Tensor, scale: Tensor, bits: int, best: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    error = _error(values, scale, bits)
    better = error < least
    return scale.where(better, best), error.where(better, least)


def _error(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    error: Tensor = (nearest(values, scale, bits) * scale.unsqueeze(-1) - values).square().sum(-1)
    return error
