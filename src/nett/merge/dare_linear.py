"""DARE with task arithmetic."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any, Literal

from nett.core.dtypes import Array
from nett.core.registry import Between, method
from nett.merge.dropping import drop_and_rescale
from nett.merge.protocol import for_each, share, weighted, weighted_sum


@method(
    title="DARE, linear",
    needs=["base"],
    identity={"density": 1.0, "scale": 1.0},
    mergekit={
        "rename": {"lambda": "scale"},
        "required": ["weight"],
        "defaults": {"density": 1.0, "rescale": True},
        "values": {"rescale": {"true": "l1", "false": "none"}},
        "ignored": ["int8_mask"],
    },
)
def dare_linear(
    base: Array,
    tuned: Sequence[Array],
    *,
    density: Annotated[float | Sequence[float], Between(0, 1)] = 0.5,
    weight: float | Sequence[float] = 1.0,
    scale: float = 1.0,
    rescale: Literal["inverse-density", "l1", "none"] = "inverse-density",
    normalize: bool = False,
    seed: int = 0,
) -> Generator[Sequence[Any], list[Any], Array]:
    """Drop random entries of each task vector, rescale the rest, and add them up.

    Formula: merged = base + scale * sum_i w_i m_i (x_i - base) / density,  m_i ~ Bernoulli(density)
    Args:
        density: probability that an entry stays; one value, or one for each model.
        weight: weight of a model's task vector; one value, or one for each model.
        scale: factor on the sum of the task vectors.
        rescale: what makes up for the dropped entries: 1/density, the ratio of L1 norms, or nothing.
        normalize: divide by the sum of the weights.
        seed: of the random masks; the same for any number of threads.
    When to use: fine-tunes with small changes (supervised fine-tuning of large models), where most can be dropped.
    When not: densities below 0.1 on small models, or changes that are large: the noise of dropping then shows.
    Cost: reads every model once, twice with the l1 rescale.
    Source: Yu et al. 2024, Language models are super Mario, section 3.
    """
    weights = for_each(weight, len(tuned), "weight")
    densities = for_each(density, len(tuned), "density")
    deltas = yield from drop_and_rescale([m - base for m in tuned], densities, rescale=rescale, seed=seed)
    total = weighted_sum(deltas, weights)
    if normalize:
        total /= total.dtype.type(share(weights))
    total = weighted(total, scale)
    total += base
    return total
