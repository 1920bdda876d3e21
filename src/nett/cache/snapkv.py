"""What the last queries look at, smoothed over neighbours (SnapKV)."""

from __future__ import annotations

from typing import Annotated

from nett.cache.choosing import best
from nett.cache.protocol import Kept, Tensor
from nett.core.registry import Between, method

RECENT = 32


@method(papers=[], title="What the last queries look at (SnapKV)", kind="serve", grain="block", extra="models")
def snapkv(recent: Tensor, keep: int, *, kernel: Annotated[int, Between(1)] = 5) -> Kept:
    """Keep the last tokens, and of the others those that these attend to most, with their neighbours.

    Formula: score_i = mean over a window around i of sum_{q in the last 32} A[q, i]
    Args:
        kernel: tokens of the window over which scores are averaged; odd.
    When to use: long prompts whose end asks the question.
    When not: the question comes later.
    Cost: the weights of the last 32 queries when the cache is made smaller; those queries are held.
    Source: Li et al. 2024, arXiv:2404.14469.
    """
    import torch

    count = recent.shape[1]
    scores = recent.sum(1)[:, None]
    smooth = torch.nn.functional.avg_pool1d(scores, kernel, 1, kernel // 2, count_include_pad=False)[:, 0]
    return best(smooth[:, : scores.shape[-1]], keep, recent=min(count, keep))
