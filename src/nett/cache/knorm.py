"""Keys of small norm stay: they are those that attention looks at most."""

from __future__ import annotations

from typing import Annotated

from nett.cache.choosing import best
from nett.cache.protocol import Kept, Tensor
from nett.core.registry import Between, method


@method(papers=[], title="Keys of small norm", kind="serve", grain="block", extra="models")
def knorm(
    keys: Tensor, keep: int, *, sinks: Annotated[int, Between(0)] = 0, recent: Annotated[int, Between(0)] = 0
) -> Kept:
    """Keep the tokens whose keys have the smallest norms.

    Formula: score_i = -||k_i||_2
    Args:
        sinks: first tokens that stay anyway.
        recent: last tokens that stay anyway.
    When to use: as a baseline that needs no attention weights.
    When not: models that norm their keys.
    Cost: a norm of each key when the cache is made smaller.
    Source: Devoto et al. 2024, arXiv:2406.11430.
    """
    return best(-keys.norm(dim=-1), keep, sinks=sinks, recent=recent)
