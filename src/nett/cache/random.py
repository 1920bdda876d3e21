"""Tokens chosen by chance: what every other policy has to beat."""

from __future__ import annotations

from typing import Annotated

from nett.cache.choosing import best
from nett.cache.protocol import Kept, Tensor
from nett.core.registry import Between, method


@method(papers=[], title="Tokens by chance", kind="serve", grain="block", extra="models")
def random(
    keys: Tensor,
    keep: int,
    *,
    sinks: Annotated[int, Between(0)] = 4,
    recent: Annotated[int, Between(0)] = 16,
    seed: Annotated[int, Between(0)] = 0,
) -> Kept:
    """Keep the first and the last tokens, and of the others some by chance.

    Args:
        sinks: first tokens that stay.
        recent: last tokens that stay.
        seed: of the choice; together with the number of tokens.
    When to use: as a baseline.
    When not: anywhere else.
    Cost: none.
    Source: none.
    """
    import torch

    draw = torch.Generator().manual_seed(seed * 1_000_003 + keys.shape[1])
    scores = torch.rand(keys.shape[1], generator=draw).to(keys.device).expand(keys.shape[0], -1)
    return best(scores, keep, sinks=sinks, recent=recent)
