"""Gates on the blocks of a frozen model (P07): h_{l+1} = h_l + g_l * (Block_l(h_l) - h_l), trained to be 0 or 1.

All gates are trained together on next tokens, so that the gate of a block knows which others are closing; a ranking of
blocks one by one does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from nett.core.dtypes import Array
from nett.core.token_batches import batches, next_token_loss, sound
from nett.weights.stack import Stack, between

RISE = 0.8  # part of the steps over which polarisation rises to its full weight
COUNT = 10.0  # weight of the squared distance between the mean gate and the share of blocks that stay


@final
@dataclass(frozen=True, eq=False)
class Gates:
    """values [blocks]: the gates in the end. path [steps, blocks]: after each step. losses: on next tokens, each step."""

    values: Array
    path: Array
    losses: tuple[float, ...]

    def order(self) -> list[int]:
        """Blocks by their gates, smallest first; of equal gates (several at 0) the one that closed earlier."""
        mean = self.path.mean(axis=0) if len(self.path) else self.values
        return [int(i) for i in np.lexsort((mean, np.abs(self.values)))]


def penalty(gates: Tensor, kept: float, *, polarise: float, pull: float) -> Tensor:
    """What is added to the loss: polarise * mean(pull |g| - |g - mean g|) + COUNT * (mean g - kept)^2.

    The first part is least where each gate is 0 or far from the mean (polarisation, NeurIPS 2020, equation 2); the
    second holds the number of open gates. kept: share of the blocks that stay.
    """
    centre = gates.mean()
    apart = pull * gates.abs() - (gates - centre).abs()
    return polarise * apart.mean() + COUNT * (centre - kept) ** 2


@torch.enable_grad()
def trained_gates(
    model: Any,
    stack: Stack,
    windows: Tensor,
    *,
    kept: float,
    steps: int,
    batch: int,
    rate: float,
    polarise: float,
    pull: float,
    seed: int,
) -> Gates:
    """Train a gate for each block by Adam, from 1 and within [0, 1], with all weights frozen.

    ``polarise`` rises on a line over the first part RISE of the steps: were it strong from the start, it would close the gates
    that happen to fall first; were it never strong, gates stay half open, and a half open block is not like none.

    windows: int64 [n, length] on the model's device. kept: share of the blocks that stay. Raises NettError where the
    loss is no number.
    """
    model.requires_grad_(False)
    gates = nn.Parameter(torch.ones(len(stack), device=windows.device))
    optimizer = torch.optim.Adam([gates], lr=rate)
    path, losses = [], []

    def gated(number: int, given: Tensor, made: Tensor) -> Tensor:
        return given + gates[number].to(made.dtype) * (made - given)

    with between(stack, gated):
        for step, ids in enumerate(batches(windows, batch, steps, seed)):
            loss = next_token_loss(model(input_ids=ids, use_cache=False).logits, ids)
            losses.append(sound(loss, step, "the gates"))
            optimizer.zero_grad()
            now = polarise * min(1.0, (step + 1) / (RISE * steps))
            (loss + penalty(gates, kept, polarise=now, pull=pull)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                gates.clamp_(0, 1)
            path.append(gates.detach().cpu().numpy().copy())
    values = gates.detach().cpu().numpy().astype(np.float64)
    return Gates(values, np.array(path, np.float64).reshape(-1, len(stack)), tuple(losses))
