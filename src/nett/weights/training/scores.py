"""How much a unit matters: five criteria of its numbers and of the direction that the optimizer moves them in (P21)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nett.core.structure import Slices

CRITERIA = ("magnitude", "average magnitude", "cosine", "first order", "second order")
WEIGHT = 0.2  # of each criterion
_SAFE = 1e-8


def direction(optimizer: torch.optim.Optimizer, parameter: Tensor, settings: Mapping[str, Any]) -> Tensor | None:
    """What the optimizer's last step went along, before the learning rate: Adam's quotient, SGD's momentum, or else the
    gradient. None where there is no gradient."""
    if parameter.grad is None:
        return None
    state = optimizer.state.get(parameter, {})
    if "exp_avg" in state and "exp_avg_sq" in state:
        one, two = settings["betas"]
        step = float(state["step"])
        mean, square = state["exp_avg"] / (1 - one**step), state["exp_avg_sq"] / (1 - two**step)
        return torch.as_tensor(mean / (square.sqrt() + settings.get("eps", _SAFE)))
    if state.get("momentum_buffer") is not None:
        return torch.as_tensor(state["momentum_buffer"])
    return parameter.grad


def raw_scores(one: Slices, weights: Mapping[str, Tensor], directions: Mapping[str, Tensor | None]) -> Tensor:
    """``[5, units]`` float32: the criteria of one group, each slice laid over all its tensors."""
    squares = along = moved = torch.zeros(one.size)
    for part in one.parts:
        w = part.rows(weights[part.name]).float()
        squares = squares.to(w.device) + w.square().sum(1)
        if (g := directions[part.name]) is not None:
            d = part.rows(g).float()
            along = along.to(w.device) + (w * d).sum(1)
            moved = moved.to(w.device) + d.square().sum(1)
    norm, size = squares.sqrt(), moved.sqrt()
    first = along.abs()
    return torch.stack([
        norm,
        norm / (one.numbers + 1e-6),
        along / (norm + _SAFE) / (size + _SAFE) + 1,
        first,
        0.5 * first.square(),
    ])  # fmt: skip


def overall(raw: Sequence[Tensor]) -> list[Tensor]:
    """``[units]`` for each group: each criterion over its Euclidean norm over all groups, then their weighted sum."""
    total = torch.stack([r.square().sum(1) for r in raw]).sum(0)
    norm = (total + _SAFE).sqrt() + _SAFE
    return [(WEIGHT * r / norm[:, None]).sum(0) for r in raw]
