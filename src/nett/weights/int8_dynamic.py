"""W8A8: weights and activations as 8-bit numbers, so that products are those of integers."""

from __future__ import annotations

from nett.core.registry import method
from nett.weights.grid import nearest, scales
from nett.weights.protocol import Quantised, Tensor


@method(papers=[], title="8-bit weights and activations", grain="tensor")
def int8_dynamic(weight: Tensor, *, search: bool = False) -> Quantised:
    """Round weights to 8 bits with a scale a row; inputs are rounded to 8 bits with a scale a token when the model runs.

    Formula: q = clamp(round(w / scale), -128, 127), scale = max|w_row| / 127.5;  y = (round(x / s_x) q^T) s_x scale
    Args:
        search: of 29 ranges for each row take the one with the least squared error, not the whole range.
    When to use: half of the bytes, and integer products where the loader has them, without any text.
    When not: models with a few inputs far larger than the others: smoothquant, with some text.
    Cost: reads the model once.
    Source: Dettmers et al. 2022, arXiv:2208.07339, section 2 (row-wise and token-wise scales, without outlier columns).
    """
    scale, _ = scales(weight, weight.shape[1], 8, symmetric=True, search=search)
    found = nearest(weight, scale, None, 8)
    return Quantised(found.codes, found.scale, None, 8, activations=8)
