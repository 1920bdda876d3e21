"""GPTQ: rounding column by column, each error made good by the columns still to come."""

from __future__ import annotations

from typing import Annotated, Literal

from nett.core.registry import Between, method
from nett.weights.grid import group_for, scales
from nett.weights.hessian import upper_inverse, without_dead
from nett.weights.protocol import Quantised, Tensor

_BLOCK = 128  # columns whose errors reach the rest of the matrix together


@method(papers=[], title="GPTQ", grain="block")
def gptq(
    weight: Tensor,
    gram: Tensor,
    *,
    bits: Annotated[int, Between(2, 8)] = 4,
    group: Annotated[int, Between(-1)] = 0,
    symmetric: bool = True,
    damping: Annotated[float, Between(0, open_low=True)] = 0.01,
    order: Literal["activation", "given"] = "activation",
    search: bool = True,
) -> Quantised:
    """Round a layer's columns one after the other, moving those not yet rounded so that its outputs change least.

    Formula: q_j = round(w_j); w_k -= (w_j - q_j) / U_jj * U_jk for k > j, with U^T U = (X^T X / n + damping)^-1
    Args:
        bits: bits of a weight.
        group: neighbouring columns that share a scale; 0 for the largest of 128, 64 and 32 that divides all layers,
            -1 for one scale a row.
        symmetric: numbers around zero; otherwise each group has a zero point as well.
        damping: share of the mean of the moments' diagonal that is added to it.
        order: columns with the largest inputs first (the groups stay where they are, so nothing more is stored), or
            in their order.
        search: of 29 ranges for each group take the one with the least error, each column weighed by its mean square.
    When to use: 3 and 4 bits, with some text like that which the model will meet.
    When not: 8 bits: rtn is as good.
    Cost: two passes of the calibration text through each block, a Cholesky factor a layer of its number of columns.
    Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1; scales stand before the first column is rounded.
    """
    import torch

    moved, moments = without_dead(weight, gram)
    columns = weight.shape[1]
    width = group_for(columns, group)
    scale, zero = scales(moved.to(weight.dtype), width, bits, symmetric=symmetric, weigh=gram.diagonal(), search=search)
    by = moments.diagonal().argsort(descending=True, stable=True) if order == "activation" else torch.arange(columns)
    by = by.to(weight.device)
    upper = upper_inverse(moments[by][:, by], damping)
    rows = moved.T[by].contiguous()  # one column of the matrix a row, in the order of rounding
    step = scale.float().T[by // width].contiguous()
    shift = None if zero is None else zero.float().T[by // width].contiguous()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = torch.empty_like(rows)
    for first in range(0, columns, _BLOCK):
        last = min(first + _BLOCK, columns)
        block, errors = rows[first:last].clone(), torch.empty_like(rows[first:last])
        inner = upper[first:last, first:last]
        for i in range(last - first):
            at = first + i
            code = block[i] / step[at]
            code = (code.round_() if shift is None else code.add_(shift[at]).round_()).clamp_(low, high)
            codes[at] = code
            value = code * step[at] if shift is None else (code - shift[at]) * step[at]
            errors[i] = (block[i] - value) / inner[i, i]
            if at + 1 < last:
                block[i + 1 :].addr_(inner[i, i + 1 :], errors[i], alpha=-1)
        rows[last:].addmm_(upper[first:last, last:].T, errors, alpha=-1)
    back = torch.empty_like(codes, dtype=torch.int8)
    back[by] = codes.to(torch.int8)
    return Quantised(back.T.contiguous(), scale, zero, bits)
