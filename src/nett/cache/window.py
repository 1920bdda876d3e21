"""Sinks and a window: the first tokens and the last ones (StreamingLLM)."""

from __future__ import annotations

from typing import Annotated

from nett.cache.protocol import Kept, Tensor
from nett.core.registry import Between, method


@method(papers=[], title="Sinks and a window", kind="serve", grain="block", extra="models")
def window(keys: Tensor, keep: int, *, sinks: Annotated[int, Between(0)] = 4) -> Kept:
    """Keep the first tokens, which attention rests on, and the last ones.

    Args:
        sinks: first tokens that stay.
    When to use: as a baseline; streams whose far past does not matter.
    When not: anything in the middle may be asked for.
    Cost: none.
    Source: Xiao et al. 2023, arXiv:2309.17453.
    """
    import torch

    heads, count = keys.shape[:2]
    first = min(sinks, keep - 1) if keep > 1 else 0
    last = torch.arange(count - (keep - first), count, device=keys.device)
    return Kept(torch.cat([torch.arange(first, device=keys.device), last]).expand(heads, -1))
