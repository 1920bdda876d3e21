"""Wanda: pruning by magnitude times the size of what the weight is multiplied with."""

from __future__ import annotations

from typing import Annotated

from nett.core.registry import Between, method
from nett.weights.masks import kept
from nett.weights.protocol import Tensor


@method(papers=[], title="Wanda, pruning by weights and activations", grain="block", identity={"sparsity": 0.0})
def wanda(
    weight: Tensor,
    squares: Tensor,
    *,
    sparsity: Annotated[float, Between(0, 1)] = 0.5,
    pattern: str = "unstructured",
) -> Tensor:
    """In each row, set the weights to zero that matter least to the outputs on the calibration text.

    Formula: score_ij = |w_ij| * sqrt(mean_t x_tj^2); the lowest of each row go
    Args:
        sparsity: share of each row that becomes zero.
        pattern: unstructured, or N:M such as 2:4 (N of M neighbours in a row stay; sparsity then means nothing).
    When to use: sparsity without retraining, in seconds.
    When not: 2:4 at a quality that matters: sparsegpt moves the other weights too. A file with zeros is not smaller.
    Cost: two passes of the calibration text through each block, and a sort of each row.
    Source: Sun et al. 2023, arXiv:2306.11695, section 3.
    """
    return weight * kept(weight.float().abs() * squares.sqrt(), sparsity, pattern)
