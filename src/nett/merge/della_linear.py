"""DELLA without the election of signs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from nett.core.dtypes import Array
from nett.core.registry import Between, method
from nett.merge.protocol import for_each, share, weighted, weighted_sum
from nett.merge.ranked_dropping import drop_by_rank


@method(
    title="DELLA, linear",
    needs=["base"],
    rows=True,
    identity={"density": 1.0, "scale": 1.0},
    mergekit={
        "rename": {"lambda": "scale"},
        "required": ["weight"],
        "defaults": {"density": 1.0, "rescale": True, "normalize": False},
        "values": {"rescale": {"true": "l1", "false": "none"}},
        "ignored": ["int8_mask"],
    },
)
def della_linear(
    base: Array,
    tuned: Sequence[Array],
    *,
    density: Annotated[float | Sequence[float], Between(0, 1)] = 0.5,
    epsilon: Annotated[float | Sequence[float], Between(0, 1)] = 0.15,
    weight: float | Sequence[float] = 1.0,
    scale: float = 1.0,
    rescale: Literal["inverse-density", "l1", "none"] = "inverse-density",
    normalize: bool = False,
    seed: int = 0,
) -> Generator[Sequence[Any], list[Any], Array]:
    """Drop entries of each task vector at random, small ones sooner, rescale the rest, and add them up.

    Formula: merged = base + scale * sum_i w_i m_i (x_i - base) / p_i,  m_i ~ Bernoulli(p_i),
             p_i = density - epsilon + 2 epsilon * rank of |x_i - base| in its row, from 0 to 1
    Args:
        density: probability that an entry stays, on average; one value, or one for each model.
        epsilon: how far the probabilities of the smallest and the largest entry of a row lie from it.
        weight: weight of a model's task vector; one value, or one for each model.
        scale: factor on the merged task vector.
        rescale: what makes up for the dropped entries: 1/probability, the ratio of L1 norms, or nothing.
        normalize: divide by the sum of the weights.
        seed: of the random masks; the same for any number of threads.
    When to use: as dare_linear, where large entries should rather stay.
    When not: densities below 0.1 on small models: the noise of dropping then shows.
    Cost: reads every model once, twice with the l1 rescale, and sorts every row of every task vector.
    Source: Deep et al. 2024, DELLA-Merging, section 3.1.
    """
    weights = for_each(weight, len(tuned), "weight")
    densities, epsilons = for_each(density, len(tuned), "density"), for_each(epsilon, len(tuned), "epsilon")
    deltas = yield from drop_by_rank(
        [np.asarray(m - base) for m in tuned], densities, epsilons, rescale=rescale, seed=seed
    )
    merged = weighted_sum(deltas, weights)
    if normalize:
        merged /= merged.dtype.type(share(weights))
    merged = weighted(merged, scale).reshape(base.shape)
    merged += base
    return merged
