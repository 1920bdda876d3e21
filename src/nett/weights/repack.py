"""Weights that were quantised once and saved as floats, as whole numbers again, without a bit of difference."""

from __future__ import annotations

from nett.core.registry import method
from nett.weights.protocol import Quantised, Tensor


@method(papers=[], title="Exact re-packing", grain="tensor", guarantee="exact")
def repack(weight: Tensor) -> Quantised | Tensor:
    """Write layers whose weights lie on a quantisation grid as whole numbers and scales that give back every bit.

    Formula: (q - zero) * scale = w, bit for bit in the model's type; layers for which that has no solution stay dense
    When to use: on models that were quantised and saved as floats: dequantised GGUF (Q4_0, Q5_0, Q8_0), GPTQ, AWQ or
        compressed-tensors, or rounded to nearest by hand.
    When not: on minima that are no whole multiple of their scale (Q4_1, Q5_1, K-quants): these layers stay dense, since
        compressed-tensors has no place for them; nett store add keeps them packed. Nor where rounding left zeros of
        both signs.
    Guarantee: exact. Each layer is compared bit by bit as it is written; nett restore gives the dense tensors back.
    Cost: reads the model once; some tries a layer.
    Source: the format of compressed-tensors; the search is that of nett.core.grid.
    """
    from nett.weights.regrid import on_grid

    return on_grid(weight) or weight
