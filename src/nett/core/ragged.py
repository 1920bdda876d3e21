"""Models whose blocks differ in width, which the configs of transformers cannot say: a mark in ``config.json`` and modules
of the widths that the file has.

A stock loader refuses such a folder; what opens models here makes its linear layers as wide as their tensors are.
Attention keeps the number of query heads for each key head, which is all that the modules of transformers ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nett.core.checkpoint.base import TensorInfo

MARK = "nett_widths"  # in config.json


def fit_widths(model: Any, tensors: Mapping[str, TensorInfo]) -> None:
    """Give the linear layers of ``model`` the shapes of the tensors of their names; what they held is lost where these
    differ."""
    import torch

    for name, module in model.named_modules():
        info = tensors.get(f"{name}.weight")
        if not isinstance(module, torch.nn.Linear) or info is None or info.shape == tuple(module.weight.shape):
            continue
        module.out_features, module.in_features = info.shape
        for part in ("weight", "bias"):
            old = getattr(module, part)
            if old is not None:
                shape = info.shape if part == "weight" else info.shape[:1]
                new = torch.nn.Parameter(torch.empty(shape, dtype=old.dtype, device=old.device), old.requires_grad)
                setattr(module, part, new)
