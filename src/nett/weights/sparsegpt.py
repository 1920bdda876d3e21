"""SparseGPT: pruning column by column, each removed weight made good by the columns still to come."""

from __future__ import annotations

from typing import Annotated

from nett.core.registry import Between, method
from nett.weights.hessian import upper_inverse
from nett.weights.masks import kept, parse_pattern
from nett.weights.protocol import Tensor

_BLOCK = 128  # columns whose mask is chosen together, and whose errors reach the rest of the matrix together


@method(papers=[], title="SparseGPT", grain="block", identity={"sparsity": 0.0})
def sparsegpt(
    weight: Tensor,
    gram: Tensor,
    *,
    sparsity: Annotated[float, Between(0, 1)] = 0.5,
    pattern: str = "unstructured",
    damping: Annotated[float, Between(0, open_low=True)] = 0.01,
) -> Tensor:
    """Set the weights to zero that the outputs miss least, and move those that are left so that the outputs change least.

    Formula: lowest w_j^2 / U_jj^2 go; w_k -= w_j / U_jj * U_jk for k > j, with U^T U = (X^T X / n + damping)^-1
    Args:
        sparsity: share of each 128 columns that becomes zero.
        pattern: unstructured, or N:M such as 2:4 (N of M neighbours in a row stay; sparsity then means nothing).
        damping: share of the mean of the moments' diagonal that is added to it.
    When to use: half of the weights or 2:4, with some text like that which the model will meet.
    When not: low sparsity: wanda is as good and takes seconds. A file with zeros is not smaller.
    Cost: two passes of the calibration text through each block, a Cholesky factor a layer of its number of columns.
    Source: Frantar and Alistarh 2023, arXiv:2301.00774, algorithm 1.
    """
    import torch

    of, columns = parse_pattern(pattern), weight.shape[1]
    dead = gram.diagonal() == 0
    upper = upper_inverse(gram + torch.diag(dead.to(gram.dtype)), damping)
    rows = weight.float().T.contiguous()  # one column of the matrix a row
    cost = (
        upper.diagonal().square().reciprocal().where(~dead, upper.new_zeros(()))
    )  # what never has an input goes first
    stays = torch.ones(rows.shape, dtype=torch.bool, device=weight.device)
    wide = _BLOCK if of is None else max(1, _BLOCK // of[1]) * of[1]
    for first in range(0, columns, wide):
        last = min(first + wide, columns)
        block, errors = rows[first:last].clone(), torch.empty_like(rows[first:last])
        inner, stay = upper[first:last, first:last], stays[first:last]
        step = last - first if of is None else of[1]
        for i in range(last - first):
            if i % step == 0:
                scores = (block[i : i + step].square() * cost[first + i : first + i + step, None]).T
                stay[i : i + step] = kept(scores, sparsity, pattern, "tensor").T
            errors[i] = (block[i] * ~stay[i]) / inner[i, i]
            block[i] *= stay[i]
            if i + 1 < last - first:
                block[i + 1 :].addr_(inner[i, i + 1 :], errors[i], alpha=-1)
        rows[first:last] = block
        rows[last:].addmm_(upper[first:last, last:].T, errors, alpha=-1)
    return (rows * stays).T.contiguous().to(weight.dtype)
