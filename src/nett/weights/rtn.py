"""Rounding to nearest: quantisation without data, the baseline of every other."""

from __future__ import annotations

from typing import Annotated

from nett.core.registry import Between, method
from nett.weights.grid import group_for, nearest, scales
from nett.weights.protocol import Quantised, Tensor


@method(papers=[], title="Rounding to nearest", grain="tensor")
def rtn(
    weight: Tensor,
    *,
    bits: Annotated[int, Between(2, 8)] = 4,
    group: Annotated[int, Between(-1)] = 0,
    symmetric: bool = True,
    search: bool = False,
) -> Quantised:
    """Round every weight to the nearest of 2^bits numbers that share a scale in groups of columns.

    Formula: q = clamp(round(w / scale) + zero);  w ~ (q - zero) * scale
    Args:
        bits: bits of a weight.
        group: neighbouring columns that share a scale; 0 for the largest of 128, 64 and 32 that divides all layers,
            -1 for one scale a row.
        symmetric: numbers around zero; otherwise each group has a zero point as well.
        search: of 29 ranges for each group take the one with the least squared error, not the whole range.
    When to use: 8 bits, or 4 bits where there is no text to calibrate with.
    When not: below 4 bits, or where some text is at hand: gptq.
    Cost: reads the model once; with search, 29 roundings of each matrix.
    Source: the definition of compressed-tensors and its minmax observer; the ranges are searched as in Frantar et al.
        2022, arXiv:2210.17323 (their code's mse option).
    """
    width = group_for(weight.shape[1], group)
    scale, zero = scales(weight, width, bits, symmetric=symmetric, search=search)
    return nearest(weight, scale, zero, bits)
