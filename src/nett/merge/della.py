"""DELLA: entries dropped at random by rank, signs elected."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from nett.core.dtypes import Array
from nett.core.registry import Between, method
from nett.merge.election import elect_and_average
from nett.merge.protocol import for_each, weighted
from nett.merge.ranked_dropping import drop_by_rank


@method(
    title="DELLA",
    needs=["base"],
    rows=True,
    identity={"density": 1.0, "scale": 1.0},
    mergekit={
        "rename": {"lambda": "scale"},
        "required": ["weight"],
        "defaults": {"density": 1.0, "rescale": True, "normalize": True},
        "fixed": {"weight_in_election": True},
        "values": {"rescale": {"true": "l1", "false": "none"}},
        "ignored": ["int8_mask"],
    },
)
def della(
    base: Array,
    tuned: Sequence[Array],
    *,
    density: Annotated[float | Sequence[float], Between(0, 1)] = 0.5,
    epsilon: Annotated[float | Sequence[float], Between(0, 1)] = 0.15,
    weight: float | Sequence[float] = 1.0,
    scale: float = 1.0,
    rescale: Literal["inverse-density", "l1", "none"] = "inverse-density",
    weight_in_election: bool = True,
    normalize: bool = True,
    seed: int = 0,
) -> Generator[Sequence[Any], list[Any], Array]:
    """Drop entries of each task vector at random, small ones sooner, rescale, elect signs, average those that agree.

    Formula: merged = base + scale * mean of { m_i (x_i - base) / p_i : sign agrees with sign of their sum },
             m_i ~ Bernoulli(p_i),  p_i = density - epsilon + 2 epsilon * rank of |x_i - base| in its row, from 0 to 1
    Args:
        density: probability that an entry stays, on average; one value, or one for each model.
        epsilon: how far the probabilities of the smallest and the largest entry of a row lie from it.
        weight: weight of a model's task vector; one value, or one for each model.
        scale: factor on the merged task vector.
        rescale: what makes up for the dropped entries: 1/probability, the ratio of L1 norms, or nothing.
        weight_in_election: let the weights count in the election of signs as well.
        normalize: divide by the weight of the agreeing entries.
        seed: of the random masks; the same for any number of threads.
    When to use: several tasks that pull in opposite directions, where dare_ties drops too much of what matters.
    When not: densities below 0.1 on small models: the noise of dropping then shows.
    Cost: reads every model once, twice with the l1 rescale, and sorts every row of every task vector.
    Source: Deep et al. 2024, DELLA-Merging, section 3 (drop, elect, fuse).
    """
    weights = for_each(weight, len(tuned), "weight")
    densities, epsilons = for_each(density, len(tuned), "density"), for_each(epsilon, len(tuned), "epsilon")
    deltas = yield from drop_by_rank(
        [np.asarray(m - base) for m in tuned], densities, epsilons, rescale=rescale, seed=seed
    )
    merged = yield from elect_and_average(
        deltas,
        weights,
        weight_in_election=weight_in_election,
        zero_sign="positive",
        normalize=normalize,
        scope="tensor",
    )
    merged = weighted(merged, scale).reshape(base.shape)
    merged += base
    return merged
