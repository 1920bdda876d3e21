"""Magnitude pruning: the smallest weights become zero."""

from __future__ import annotations

from typing import Annotated, Literal

from nett.core.registry import Between, method
from nett.weights.masks import kept
from nett.weights.protocol import Tensor


@method(papers=[], title="Magnitude pruning", grain="tensor", identity={"sparsity": 0.0})
def magnitude(
    weight: Tensor,
    *,
    sparsity: Annotated[float, Between(0, 1)] = 0.5,
    pattern: str = "unstructured",
    scope: Literal["tensor", "row"] = "tensor",
) -> Tensor:
    """Set the weights that are smallest in magnitude to zero.

    Formula: w_ij -> 0 where |w_ij| is among the sparsity * size smallest
    Args:
        sparsity: share of a layer's weights that become zero.
        pattern: unstructured, or N:M such as 2:4 (N of M neighbours in a row stay; sparsity then means nothing).
        scope: the smallest of the whole matrix, or of each row.
    When to use: as the baseline of every other pruning.
    When not: language models beyond a few tenths: wanda or sparsegpt. A file with zeros in it is not smaller: no loader
        reads sparse files any more.
    Cost: reads the model once, and sorts the entries of each matrix.
    Source: Han et al. 2015, arXiv:1506.02626, section 3.
    """
    return weight * kept(weight.float().abs(), sparsity, pattern, scope)
