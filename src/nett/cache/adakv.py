"""AdaKV: the heads of a layer share one budget, and those whose attention is spread wider keep more."""

from __future__ import annotations

from typing import Annotated

from nett.cache.protocol import Kept, Tensor
from nett.core.registry import Between, method

RECENT = 32


@method(papers=[], title="One budget for all heads (AdaKV)", kind="serve", grain="block", extra="models")
def adakv(
    recent: Tensor,
    there: Tensor,
    heads: int,
    keep: int,
    *,
    kernel: Annotated[int, Between(1)] = 5,
    safeguard: Annotated[float, Between(0, 1)] = 0.2,
) -> Kept:
    """Score tokens as SnapKV does, and keep the highest scores of all heads of a layer together.

    Formula: score_i of each head as in snapkv; the heads * keep highest of a layer's, and of every head its first
             safeguard * keep and the last tokens
    Args:
        kernel: tokens of the window over which scores are averaged; odd.
        safeguard: share of the budget that every head has for itself.
    When to use: models whose heads differ in how many tokens they look at.
    When not: speed matters: heads of unequal length are put side by side at every step.
    Cost: as snapkv; what a head does not keep is not held, and a copy of the cache is made at every step.
    Source: Feng et al. 2024, arXiv:2407.11550, algorithm 1, with SnapKV's scores.
    """
    import torch

    count, slots = recent.shape[1], recent.shape[2]
    smooth = torch.nn.functional.avg_pool1d(recent.sum(1)[:, None], kernel, 1, kernel // 2, count_include_pad=False)[
        :, 0, :slots
    ]
    scores = smooth.masked_fill(~there, -torch.inf)
    last = min(count, keep, slots)
    own = max(last, round(safeguard * keep))
    if last:
        scores[:, slots - last :] = torch.inf
    order = scores.flip(1).argsort(dim=1, descending=True, stable=True)[:, :own]
    scores.scatter_(1, slots - 1 - order, torch.inf)  # what a head has for itself
    scores = scores.masked_fill(~there, -torch.inf).reshape(-1, heads, slots)  # rows, heads, slots
    together = scores.flatten(1)
    best = together.argsort(dim=1, descending=True, stable=True)[:, : keep * heads]
    chosen = torch.zeros_like(together, dtype=torch.bool).scatter_(1, best, True)
    chosen = (chosen & (together > -torch.inf)).view(-1, slots)
    index = torch.arange(slots, device=recent.device).expand(len(chosen), -1).where(chosen, -1).sort(dim=1).values
    return Kept(index[:, slots - int(chosen.sum(1).max()) :])
