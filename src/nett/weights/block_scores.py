"""What a block is worth without training anything: the baselines that gates have to beat (P07)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nett.core.dtypes import Array
from nett.weights.stack import Stack, between


def influence(model: Any, stack: Stack, windows: Tensor, *, batch: int) -> Array:
    """Block influence of ShortGPT (arXiv 2403.03853, equation 1) [blocks]: 1 - mean cosine of what goes into a block and
    what comes out of it, over all tokens of the windows."""
    totals = np.zeros(len(stack))

    def look(number: int, given: Tensor, made: Tensor) -> Tensor:
        totals[number] += float(functional.cosine_similarity(given, made, dim=-1).double().sum())
        return made

    with torch.no_grad(), between(stack, look):
        for start in range(0, len(windows), batch):
            model(input_ids=windows[start : start + batch], use_cache=False)
    return np.asarray(1 - totals / windows.numel())


def block_norms(stack: Stack) -> Array:
    """[blocks]: root mean square of the entries of each block's matrices."""
    found = []
    for block in stack.layers:
        matrices = [p.detach().double() for p in block.parameters() if p.dim() >= 2]
        count = sum(m.numel() for m in matrices)
        found.append((sum(float((m * m).sum()) for m in matrices) / max(1, count)) ** 0.5)
    return np.array(found)
