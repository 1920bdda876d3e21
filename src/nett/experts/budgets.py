"""How many groups each layer becomes, where neighbouring layers share what they may keep."""

from __future__ import annotations

from collections.abc import Sequence

from nett.core.errors import Refused
from nett.experts.choosing import uniform_counts
from nett.experts.protocol import Layer


def shared_counts(
    layers: Sequence[Layer], keep: float, costs: Sequence[Sequence[float]], adjacent: int = 0
) -> list[int]:
    """As many groups as :func:`uniform_counts` in each run of ``adjacent`` layers (0: of all), one taken at a time where it
    costs least more.

    costs: for each layer what 0, 1, 2 … groups cost, up to one for each expert; below its least it is not looked at.
    """
    if any(len(layer.pools) > 1 for layer in layers):
        raise Refused(
            "its routers choose among pools first, so every layer keeps equally many", hint="--spread uniform"
        )
    even, counts = uniform_counts(layers, keep), [layer.count for layer in layers]
    step = adjacent or len(layers)
    for first in range(0, len(layers), step):
        run = range(first, min(first + step, len(layers)))
        for _ in range(sum(counts[i] - even[i] for i in run)):
            open_ = [i for i in run if counts[i] > layers[i].least]
            cheapest = min(open_, key=lambda i: (costs[i][counts[i] - 1] - costs[i][counts[i]], i))
            counts[cheapest] -= 1
    return counts
