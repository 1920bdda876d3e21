"""BatchNorm as what it is when a network runs: a scale and a shift that the layer before it could have had itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.symmetry.groups import Symmetry

STATE = ("weight", "bias", "running_mean", "running_var")


@final
@dataclass(frozen=True, eq=False)
class Fold:
    """A normalisation and the layer whose output it alone takes: together ``scale * layer(x without bias) + shift``.

    scale, shift: ``[channels]``, float64; the layer's own bias is part of the shift.
    """

    norm: str
    layer: str
    scale: Array
    shift: Array


def folds_of(symmetry: Symmetry, tensors: Mapping[str, Array], epsilon: Mapping[str, float]) -> list[Fold]:
    """Every normalisation that can be folded; ``epsilon`` is what it adds to the variance, by its name."""
    found = []
    for norm, layer in symmetry.folds.items():
        mean, variance = (tensors.get(f"{norm}.{what}") for what in ("running_mean", "running_var"))
        if mean is None or variance is None or norm not in epsilon:
            continue  # it normalises by the batch it sees
        weight, bias = (tensors.get(f"{norm}.{what}") for what in ("weight", "bias"))
        own = tensors.get(f"{layer}.bias")
        scale = 1 / np.sqrt(variance.astype(np.float64) + epsilon[norm])
        scale = scale if weight is None else scale * weight
        shift = -scale * mean if own is None else scale * (own.astype(np.float64) - mean)
        found.append(Fold(norm, layer, scale, shift if bias is None else shift + bias))
    return found


def epsilons(module: Any) -> dict[str, float]:
    """What each normalisation of a torch module adds to the variance."""
    return {n: float(m.eps) for n, m in module.named_modules() if isinstance(getattr(m, "eps", None), float)}
