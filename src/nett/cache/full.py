"""Everything stays."""

from __future__ import annotations

from nett.cache.protocol import Kept, Tensor
from nett.core.registry import method


@method(papers=[], title="Everything stays", kind="serve", grain="block", extra="models")
def full(keys: Tensor, keep: int) -> Kept:
    """Keep all tokens, whatever the budget: what others are measured against.

    When to use: as the reference.
    When not: memory matters.
    Cost: none.
    Source: none.
    """
    import torch

    return Kept(torch.arange(keys.shape[1], device=keys.device).expand(keys.shape[0], -1))
