"""Heavy hitters: the tokens that got most attention so far, and the last ones (H2O)."""

from __future__ import annotations

from typing import Annotated

from nett.cache.choosing import best
from nett.cache.protocol import Kept, Tensor
from nett.core.registry import Between, method


@method(papers=[], title="Heavy hitters (H2O)", kind="serve", grain="block", extra="models")
def h2o(mass: Tensor, keep: int, *, recent: Annotated[float, Between(0, 1)] = 0.5) -> Kept:
    """Keep the last tokens, and of the others those that got most attention from all queries so far.

    Formula: score_i = sum_q A[q, i]
    Args:
        recent: share of the slots for the last tokens.
    When to use: as a baseline; long generations.
    When not: prompts alone: early tokens are seen by more queries, and win by that.
    Cost: the weights of attention are computed once more.
    Source: Zhang et al. 2023, arXiv:2306.14048.
    """
    return best(mass, keep, recent=min(keep, round(recent * keep)))
