"""Which units go: the lowest scores, but never the last units of a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def lowest(
    scores: Sequence[Tensor], gone: Sequence[Tensor], counts: int | Sequence[int], *, divisible: int = 1
) -> list[Tensor]:
    """Boolean ``[units]`` for each group: the units to take now, beside those that are ``gone`` already.

    Args:
        scores: ``[units]`` a group. gone: boolean ``[units]`` a group.
        counts: how many to take over all groups, by one ranking, or how many in each.
        divisible: in each group the number that stay is rounded up to a multiple of it; groups of no more units than
            that lose none. At least one unit stays in every group.

    The number taken is as asked for, unless rounding or the floors forbid it; then fewer.
    """
    keep = max(1, divisible)
    taken = [torch.zeros(len(s), dtype=torch.bool) for s in scores]
    left = [int((~g).sum()) for g in gone]
    if not isinstance(counts, int):
        for i, count in enumerate(counts):
            if len(scores[i]) > keep:
                order = scores[i].cpu().masked_fill(gone[i], torch.inf).argsort(stable=True)
                taken[i][order[: max(0, min(count, left[i] - keep))]] = True
    else:
        flat = torch.cat([s.cpu().masked_fill(g, torch.inf) for s, g in zip(scores, gone, strict=True)])
        groups = torch.repeat_interleave(torch.arange(len(scores)), torch.tensor([len(s) for s in scores]))
        units = torch.cat([torch.arange(len(s)) for s in scores])
        for place in flat.argsort(stable=True).tolist():
            if counts <= 0:
                break
            i, unit = int(groups[place]), int(units[place])
            if len(scores[i]) <= keep or left[i] <= keep or bool(gone[i][unit]):
                continue
            taken[i][unit] = True
            left[i] -= 1
            counts -= 1
    for i, chosen in enumerate(taken):  # put back the highest until the number that stays is a multiple
        stays = len(chosen) - int(gone[i].sum()) - int(chosen.sum())
        back = min(-stays % keep, int(chosen.sum()))
        if back:
            order = scores[i].cpu().masked_fill(~chosen, -torch.inf).argsort(descending=True, stable=True)
            chosen[order[:back]] = False
    return taken


def wanted(sizes: Sequence[int], sparsity: float, *, each: bool, divisible: int) -> int | list[int]:
    """How many units are to go in the end: over all groups that can lose any, or in each of them."""
    free = [n if n > max(1, divisible) else 0 for n in sizes]
    share = min(sparsity, 0.999)
    return [int(n * share) for n in free] if each else int(sum(free) * share)


def part_of(total: int | list[int], period: int, periods: int) -> int | list[int]:
    """How many are gone after ``period`` (from 1) of ``periods``: equal parts, the last takes the remainder."""
    if isinstance(total, list):
        return [n if period == periods else n // periods * period for n in total]
    return total if period == periods else total // periods * period
