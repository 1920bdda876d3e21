"""SmoothQuant: 8-bit weights and activations, after outliers of the inputs were moved into the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from nett.core.registry import Between, method
from nett.weights.int8_dynamic import int8_dynamic
from nett.weights.protocol import Quantised, Scaled, Tensor
from nett.weights.scaling import positive, tied


@method(papers=[], title="SmoothQuant", grain="block")
def smoothquant(
    weights: Sequence[Tensor],
    largest: Tensor,
    source: Tensor | None,
    *,
    strength: Annotated[float, Between(0, 1)] = 0.5,
) -> list[Quantised] | Scaled:
    """Divide large inputs in the tensor before, multiply the columns that they meet, then round both to 8 bits.

    Formula: s_j = max|x_j|^a / max_i|w_ij|^(1-a)
    Args:
        strength: a, the share of the difficulty that moves from the inputs to the weights.
    When to use: 8 bits for models whose inputs have outliers, on loaders with integer products.
    When not: without any text: int8_dynamic. Layers with nothing before them that takes up a scale are rounded
        unscaled, and counted.
    Cost: two passes of the calibration text through each block.
    Source: Xiao et al. 2022, arXiv:2211.10438, equation 4.
    """
    import torch

    round8 = int8_dynamic.kernel  # type: ignore[attr-defined]
    if source is None:
        return [round8(weight) for weight in weights]
    columns = torch.stack([w.float().abs().amax(0) for w in weights]).amax(0)
    scale = tied(positive(largest), source) ** strength / tied(positive(columns), source) ** (1 - strength)
    return Scaled([round8((w.float() * scale).to(w.dtype)) for w in weights], scale)
