"""DARE with the sign election of TIES-Merging."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any, Literal

from nett.core.dtypes import Array
from nett.core.registry import Between, method
from nett.merge.dropping import drop_and_rescale
from nett.merge.election import elect_and_average
from nett.merge.protocol import for_each, weighted


@method(
    title="DARE, TIES",
    needs=["base"],
    identity={"density": 1.0, "scale": 1.0},
    mergekit={
        "rename": {"lambda": "scale"},
        "required": ["weight"],
        "defaults": {"density": 1.0, "rescale": True},
        "fixed": {"weight_in_election": True},
        "values": {"rescale": {"true": "l1", "false": "none"}},
        "ignored": ["int8_mask"],
    },
)
def dare_ties(
    base: Array,
    tuned: Sequence[Array],
    *,
    density: Annotated[float | Sequence[float], Between(0, 1)] = 0.5,
    weight: float | Sequence[float] = 1.0,
    scale: float = 1.0,
    rescale: Literal["inverse-density", "l1", "none"] = "inverse-density",
    weight_in_election: bool = True,
    normalize: bool = False,
    seed: int = 0,
) -> Generator[Sequence[Any], list[Any], Array]:
    """Drop random entries of each task vector, rescale the rest, elect signs, and add up those that agree.

    Formula: merged = base + scale * sum of { w_i m_i (x_i - base) / density : sign agrees with sign of their sum }
    Args:
        density: probability that an entry stays; one value, or one for each model.
        weight: weight of a model's task vector; one value, or one for each model.
        scale: factor on the merged task vector.
        rescale: what makes up for the dropped entries: 1/density, the ratio of L1 norms, or nothing.
        weight_in_election: let the weights count in the election of signs as well.
        normalize: divide by the weight of the agreeing entries.
        seed: of the random masks; the same for any number of threads.
    When to use: as dare_linear, where the tasks pull in opposite directions.
    When not: two models only: dropping then leaves most entries without a rival to elect against.
    Cost: reads every model once, twice with the l1 rescale.
    Source: Yu et al. 2024, section 3, with P10, algorithm 1, steps 2 and 3.
    """
    weights = for_each(weight, len(tuned), "weight")
    densities = for_each(density, len(tuned), "density")
    deltas = yield from drop_and_rescale([m - base for m in tuned], densities, rescale=rescale, seed=seed)
    merged = yield from elect_and_average(
        deltas,
        weights,
        weight_in_election=weight_in_election,
        zero_sign="positive",
        normalize=normalize,
        scope="tensor",
    )
    merged = weighted(merged, scale)
    merged += base
    return merged
