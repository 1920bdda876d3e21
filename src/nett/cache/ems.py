"""EMS (P22): tokens that matter stay, tokens like them are merged into them, the rest goes, every head by its own."""

from __future__ import annotations

from typing import Annotated, Literal

from nett.cache.merging import rows_of, summed
from nett.cache.protocol import Merged, Tensor
from nett.core.registry import Between, method

RECENT = 32
_TOGETHER = 32  # tokens whose likeness is computed together


@method(papers=["P22"], title="EMS, evict then merge", kind="serve", grain="block", extra="models")
def ems(
    keys: Tensor,
    values: Tensor,
    sizes: Tensor,
    mass: Tensor,
    reach: Tensor,
    recent: Tensor,
    keep: int,
    *,
    combine: Literal["max", "sum", "global", "local"] = "max",
    kernel: Annotated[int, Between(1)] = 5,
    pool: Annotated[float, Between(0)] = 1.0,
    threshold: Annotated[float, Between(-1, 2)] = 0.6,
    window: Annotated[int, Between(0)] = 16,
    size_bias: bool = False,
) -> Merged:
    """Score tokens by all queries and by the last ones; merge those that just miss into the most similar that stay, or into nothing.

    Formula: s_glo = mass / reach, s_loc = smoothed mean over the last 32 queries; s = max(s_glo * mean(s_loc)/mean(s_glo), s_loc);
             j -> argmax_c max(0, cos(k_j, k_c)) max(0, cos(v_j, v_c)), the zero class where that is below the threshold;
             k_c = |k_c| normalise(sum s_j k_j / |k_j|), v_c = sum s_j v_j / sum s_j
    Args:
        combine: the larger of both scores, their sum, or one of them.
        kernel: tokens over which the local score is smoothed; odd.
        pool: tokens that may be merged, as a multiple of those that stay; 0 evicts only.
        threshold: likeness below which a token goes and is not merged; 2 evicts only.
        window: last tokens that stay in any case.
        size_bias: let a slot of s tokens count s times, which the paper does not.
    When to use: small budgets, prompts with a few passages that matter.
    When not: the prompt's tokens are alike in worth; kvmerger loses less there.
    Cost: the weights of attention once more, and products of those that may be merged with those that stay.
    Source: P22, sections 3.2 to 3.4; max and the constants are as its reviews tell them, and parameters here.
    """
    import torch

    heads, count, _ = keys.shape
    score = scores(mass, reach, recent, kernel, combine)
    ranked = score.clone()
    last = min(count, window, keep)
    if last:
        ranked[:, count - last :] = torch.inf
    order = ranked.argsort(dim=1, descending=True, stable=True)
    stay = order[:, :keep].sort(dim=1).values  # the classes' centres
    spare = order[:, keep : keep + round(pool * keep)]
    place = torch.full((heads, count), -1, dtype=torch.int64, device=keys.device)
    place.scatter_(1, stay, torch.arange(stay.shape[1], device=keys.device).expand(heads, -1))
    if spare.shape[1] and threshold < 2:
        best, centre = _nearest(keys, values, spare, stay)
        place.scatter_(1, spare, centre.where(best >= threshold, centre.new_full((), -1)))
    return _by_class(keys, values, sizes, score, place, stay)


def scores(mass: Tensor, reach: Tensor, recent: Tensor, kernel: int, combine: str) -> Tensor:
    """The global score without the favour of being early, brought to the mean of the local one, and both together."""
    import torch

    everywhere = mass / reach.clamp(min=1)
    here = torch.nn.functional.avg_pool1d(recent.mean(1)[:, None], kernel, 1, kernel // 2, count_include_pad=False)[
        :, 0, : mass.shape[1]
    ]
    everywhere = everywhere * (here.mean(1, keepdim=True) / everywhere.mean(1, keepdim=True).clamp(min=1e-12))
    if combine == "sum":
        return everywhere + here
    return {"max": everywhere.maximum(here), "global": everywhere, "local": here}[combine]


def _nearest(keys: Tensor, values: Tensor, some: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``some`` ``[h, s]`` the likeness to the most similar of ``others`` and its place there, each ``[h, s]``; the product
    of two cosines, none below zero: two that point away from each other are not alike. A few at a time, within a core's
    cache."""
    import torch

    units = [torch.nn.functional.normalize(numbers, dim=-1) for numbers in (keys, values)]
    pairs = [(rows_of(u, some), rows_of(u, others).transpose(1, 2)) for u in units]
    found = []
    for start in range(0, some.shape[1], _TOGETHER):
        a, b = ((mine[:, start : start + _TOGETHER] @ other).clamp_(min=0) for mine, other in pairs)
        found.append(a.mul_(b).max(-1))
    return torch.cat([f.values for f in found], 1), torch.cat([f.indices for f in found], 1)


def _by_class(keys: Tensor, values: Tensor, sizes: Tensor, score: Tensor, place: Tensor, stay: Tensor) -> Merged:
    """One scatter for all heads: class 0 takes what is evicted, the others their centre and what is merged into it."""
    import torch

    count = stay.shape[1]
    into = place + 1
    weight = score.clamp(min=1e-12) * sizes

    def by_class(numbers: Tensor) -> Tensor:
        return summed(numbers, into, count + 1)[:, 1:]

    total = by_class(weight.unsqueeze(-1))
    norm = keys.norm(dim=-1, keepdim=True)
    direction = torch.nn.functional.normalize(by_class(keys / norm.clamp(min=1e-12) * weight.unsqueeze(-1)), dim=-1)
    own = norm.gather(1, stay.unsqueeze(-1))
    alone = by_class(torch.ones_like(weight).unsqueeze(-1)) == 1  # to the bit where nothing was merged
    kept_keys, kept_values = rows_of(keys, stay), rows_of(values, stay)
    made = by_class(values * weight.unsqueeze(-1)) / total
    return Merged(
        torch.where(alone, kept_keys, direction * own),
        torch.where(alone, kept_values, made),
        by_class(sizes.unsqueeze(-1))[..., 0],
        place,
    )
