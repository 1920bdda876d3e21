"""Slots put together in sets: weights around a pivot, sums by set, and what goes where a set too many is left."""

from __future__ import annotations

from collections.abc import Callable

from nett.cache.protocol import Merged, Tensor

Spread = Callable[[Tensor, Tensor, Tensor], Tensor]  # squared distances, sets, members -> sigma of each slot's set
_ROUNDS = 10


def pivots(mass: Tensor, sets: Tensor, count: int) -> Tensor:
    """Of each set the slot with most mass, the first of equals: int64 ``[h, count]``."""
    import torch

    heads, slots = mass.shape
    top = mass.new_full((heads, count), -torch.inf).scatter_reduce(1, sets, mass, "amax")
    is_top = mass >= top.gather(1, sets)
    places = torch.arange(slots, device=mass.device).expand(heads, -1)
    first = places.where(is_top, places.new_full((), slots))
    return places.new_full((heads, count), slots).scatter_reduce(1, sets, first, "amin").clamp(max=slots - 1)


def spread_of(sigma: float, by: str) -> Spread:
    """The width of the Gaussian in each set: fixed; the mean distance to the pivot; or sigma = sum g / (sqrt(2) |S|)."""

    def fixed(squared: Tensor, sets: Tensor, members: Tensor) -> Tensor:
        return squared.new_full((), sigma)

    def mean_distance(squared: Tensor, sets: Tensor, members: Tensor) -> Tensor:
        total = members.new_zeros(members.shape).scatter_add(1, sets, squared.sqrt())
        found: Tensor = (total / (members - 1).clamp(min=1)).clamp(min=1e-6).gather(1, sets)
        return found

    def fixed_point(squared: Tensor, sets: Tensor, members: Tensor) -> Tensor:
        width = mean_distance(squared, sets, members)
        for _ in range(_ROUNDS):
            g = (-squared / (2 * width.square())).exp()
            total = members.new_zeros(members.shape).scatter_add(1, sets, g)
            width = (total / (2**0.5 * members)).clamp(min=1e-6).gather(1, sets)
        return width

    return {"fixed": fixed, "mean-distance": mean_distance, "fixed-point": fixed_point}[by]


def merged(
    keys: Tensor, values: Tensor, mass: Tensor, sizes: Tensor, sets: Tensor, spread: Spread, *, add: bool = False
) -> Merged:
    """Every set as one slot. ``sets`` ``[h, n]``: ascending numbers from 0 on; heads may have unequally many. Slots that
    stand for several tokens weigh as many times. ``add``: values summed, not averaged."""
    import torch

    heads = keys.shape[0]
    count = int(sets.max()) + 1
    pivot = pivots(mass, sets, count)
    own = rows_of(keys, pivot.gather(1, sets))
    squared = (keys - own).square().sum(-1)
    members = torch.zeros(heads, count, device=keys.device).scatter_add(1, sets, torch.ones_like(mass))
    g = (-squared / (2 * spread(squared, sets, members).square())).exp() * sizes
    total = torch.zeros(heads, count, device=keys.device).scatter_add(1, sets, g)
    weight = g / total.gather(1, sets)

    def gathered(numbers: Tensor) -> Tensor:
        return summed(numbers * weight.unsqueeze(-1), sets, count)

    many = torch.zeros(heads, count, device=keys.device).scatter_add(1, sets, sizes)
    made = gathered(values)
    return Merged(gathered(keys), made * many.unsqueeze(-1) if add else made, many, sets)


def summed(numbers: Tensor, sets: Tensor, count: int) -> Tensor:
    """``[h, n, d]`` added up by set: ``[h, count, d]``. Whole rows at a time, which a scatter by element is not."""
    import torch

    heads, _, width = numbers.shape
    rows = (sets + torch.arange(heads, device=sets.device)[:, None] * count).flatten()
    found: Tensor = numbers.new_zeros(heads * count, width).index_add_(0, rows, numbers.flatten(0, 1))
    return found.view(heads, count, width)


def rows_of(numbers: Tensor, index: Tensor) -> Tensor:
    """``[h, n, d]`` at ``[h, m]``: ``[h, m, d]``, whole rows at a time."""
    import torch

    heads, count, _ = numbers.shape
    flat = (index + torch.arange(heads, device=index.device)[:, None] * count).flatten()
    return numbers.flatten(0, 1).index_select(0, flat).view(*index.shape, -1)


def gone_first(found: Merged, mass: Tensor, keep: int) -> Merged:
    """Exactly ``keep`` slots for each head: of those that are too many, the ones that got least attention go."""
    import torch

    heads, count = found.sizes.shape
    got = torch.zeros(heads, count, device=mass.device).scatter_add(1, found.into, mass)
    there = found.sizes > 0
    ranked = got.masked_fill(~there, -torch.inf)
    index = ranked.argsort(dim=1, descending=True, stable=True)[:, :keep].sort(dim=1).values
    place = torch.full((heads, count), -1, dtype=torch.int64, device=mass.device)
    place.scatter_(1, index, torch.arange(index.shape[1], device=mass.device).expand(heads, -1))
    return Merged(
        rows_of(found.keys, index),
        rows_of(found.values, index),
        found.sizes.gather(1, index),
        place.gather(1, found.into),
    )
