"""Pruning by chance: what any other choice of experts must beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np

from nett.core.registry import Between, method
from nett.experts.choosing import highest, uniform_counts
from nett.experts.protocol import Kept, Layer


@method(papers=[], title="Experts pruned by chance", grain="block", identity={"keep": 1.0})
def random(
    layers: Sequence[Layer],
    *,
    keep: Annotated[float, Between(0, 1, open_low=True)] = 0.5,
    seed: Annotated[int, Between(0)] = 0,
) -> Iterator[Kept]:
    """Keep experts that chance chooses, equally many in every layer.

    Formula: score_j uniform in [0, 1)
    Args:
        keep: share of the experts that stays.
        seed: of the choice.
    When to use: to know what a choice is worth: run it with several seeds.
    When not: to make a model smaller that is to be used.
    Cost: none but the copying.
    Place: model level, compression, pruning
    Source: no paper: a baseline.
    """
    rng = np.random.default_rng(seed)
    for layer, count in zip(layers, uniform_counts(layers, keep), strict=True):
        yield Kept(highest(layer, rng.random(layer.count), count))
