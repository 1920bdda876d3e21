"""Model Breadcrumbs with the sign election of TIES-Merging."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any

from nett.core.dtypes import Array
from nett.core.registry import Between, method
from nett.merge.election import elect_and_average
from nett.merge.norms import same_l1
from nett.merge.outliers import without_tails
from nett.merge.protocol import for_each, weighted


@method(
    title="Model Breadcrumbs, TIES",
    needs=["base"],
    identity={"density": 1.0, "scale": 1.0},
    mergekit={
        "rename": {"lambda": "scale"},
        "required": ["weight"],
        "defaults": {"density": 1.0},
        "fixed": {"weight_in_election": True},
        "ignored": ["int8_mask"],
    },
)
def breadcrumbs_ties(
    base: Array,
    tuned: Sequence[Array],
    *,
    density: Annotated[float | Sequence[float], Between(0, 1)] = 0.9,
    gamma: Annotated[float | Sequence[float], Between(0, 1)] = 0.01,
    weight: float | Sequence[float] = 1.0,
    scale: float = 1.0,
    rescale: bool = False,
    weight_in_election: bool = True,
    normalize: bool = False,
) -> Generator[Sequence[Any], list[Any], Array]:
    """Drop both tails of each task vector, elect a sign for each parameter, and add up the entries that agree.

    Formula: merged = base + scale * sum of { w_i m_i (x_i - base) : sign agrees with sign of their sum }
    Args:
        density: share of each tensor's entries that stays; one value, or one for each model.
        gamma: share of the largest entries that is dropped; one value, or one for each model.
        weight: weight of a model's task vector; one value, or one for each model.
        scale: factor on the merged task vector.
        rescale: give what is left the L1 norm that the task vector had.
        weight_in_election: let the weights count in the election of signs as well.
        normalize: divide by the weight of the agreeing entries.
    When to use: as breadcrumbs, where the tasks pull in opposite directions.
    When not: two models only: hardly an entry has a rival to elect against.
    Cost: reads every model three times (exact order statistics, no sort).
    Source: Davari and Belilovsky 2024, Model Breadcrumbs, section 3, with P10, algorithm 1, steps 2 and 3.
    """
    weights = for_each(weight, len(tuned), "weight")
    densities, gammas = for_each(density, len(tuned), "density"), for_each(gamma, len(tuned), "gamma")
    deltas = [model - base for model in tuned]
    kept = yield from without_tails(deltas, densities, gammas)
    if rescale:
        kept = yield from same_l1(deltas, kept)
    merged = yield from elect_and_average(
        kept,
        weights,
        weight_in_election=weight_in_election,
        zero_sign="positive",
        normalize=normalize,
        scope="tensor",
    )
    merged = weighted(merged, scale)
    merged += base
    return merged
