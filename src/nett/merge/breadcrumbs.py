"""Model Breadcrumbs: task vectors without their smallest and their largest entries, added up."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any

from nett.core.dtypes import Array
from nett.core.registry import Between, method
from nett.merge.norms import same_l1
from nett.merge.outliers import without_tails
from nett.merge.protocol import for_each, share, weighted, weighted_sum


@method(
    title="Model Breadcrumbs",
    needs=["base"],
    identity={"density": 1.0, "scale": 1.0},
    mergekit={
        "rename": {"lambda": "scale"},
        "required": ["weight"],
        "defaults": {"density": 1.0},
        "ignored": ["int8_mask"],
    },
)
def breadcrumbs(
    base: Array,
    tuned: Sequence[Array],
    *,
    density: Annotated[float | Sequence[float], Between(0, 1)] = 0.9,
    gamma: Annotated[float | Sequence[float], Between(0, 1)] = 0.01,
    weight: float | Sequence[float] = 1.0,
    scale: float = 1.0,
    rescale: bool = False,
    normalize: bool = False,
) -> Generator[Sequence[Any], list[Any], Array]:
    """Drop the largest and the smallest entries of each task vector, tensor by tensor, and add up what is left.

    Formula: merged = base + scale * sum_i w_i m_i (x_i - base),  m_i = 0 in both tails of |x_i - base|
    Args:
        density: share of each tensor's entries that stays; one value, or one for each model.
        gamma: share of the largest entries that is dropped; one value, or one for each model.
        weight: weight of a model's task vector; one value, or one for each model.
        scale: factor on the sum of the task vectors.
        rescale: give what is left the L1 norm that the task vector had.
        normalize: divide by the sum of the weights.
    When to use: many fine-tunes of one base, where single large entries of one task disturb the others.
    When not: few tasks; the largest entries then carry what was learnt.
    Cost: reads every model three times (exact order statistics, no sort).
    Source: Davari and Belilovsky 2024, Model Breadcrumbs, section 3.
    """
    weights = for_each(weight, len(tuned), "weight")
    densities, gammas = for_each(density, len(tuned), "density"), for_each(gamma, len(tuned), "gamma")
    deltas = [model - base for model in tuned]
    kept = yield from without_tails(deltas, densities, gammas)
    if rescale:
        kept = yield from same_l1(deltas, kept)
    total = weighted_sum(kept, weights)
    if normalize:
        total /= total.dtype.type(share(weights))
    total = weighted(total, scale)
    total += base
    return total
