"""TIES-Merging (P10)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any, Literal

from nett.core.dtypes import Array
from nett.core.order import Largest
from nett.core.registry import Between, method
from nett.merge.election import elect_and_average
from nett.merge.protocol import for_each, weighted


@method(
    papers=["P10"],
    title="TIES-Merging",
    needs=["base"],
    identity={"density": 1.0, "scale": 1.0},
    symmetric=True,
    mergekit={
        "rename": {"lambda": "scale"},
        "required": ["weight"],
        "defaults": {"density": 1.0},
        "fixed": {
            "scope": "tensor",
            "tie_policy": "lowest-index",
            "weight_in_election": True,
            "zero_sign": "positive",
        },
        "ignored": ["int8_mask"],
        "only": {"rescale": False},
    },
)
def ties(
    base: Array,
    tuned: Sequence[Array],
    *,
    density: Annotated[float | Sequence[float], Between(0, 1)] = 0.2,
    scale: float = 1.0,
    scope: Literal["tensor", "model"] = "model",
    tie_policy: Literal["all", "lowest-index"] = "all",
    weight: float | Sequence[float] = 1.0,
    weight_in_election: bool = False,
    zero_sign: Literal["majority", "positive"] = "majority",
    normalize: bool = True,
) -> Generator[Sequence[Any], list[Any], Array]:
    """Trim each task vector to its largest entries, elect one sign a parameter, average those that agree.

    Formula: merged = base + scale * mean of { trim(x_i - base) : sign agrees with sign of their sum }
    Args:
        density: share of each task vector's entries that is kept; one value, or one for each model.
        scale: factor on the merged task vector (lambda in the paper); tune it on validation data.
        scope: trim over the whole model, as the authors do, or tensor by tensor.
        tie_policy: keep all entries equal to the threshold, as the authors do, or exactly density * size of them,
            the first ones in order.
        weight: weight of a model in the mean; one value, or one for each model.
        weight_in_election: let the weights count in the election of signs as well.
        zero_sign: sign where the sum is exactly zero: that of the majority over the scope (authors), or +.
        normalize: divide by the weight of the agreeing entries; otherwise their sum is taken.
    When to use: several fine-tunes of one base for different tasks, merged without training.
    When not: two or three models with scale untuned; compare with task_arithmetic, which tuned is a strong baseline.
    Cost: reads every model three to four times (the exact threshold is found by counting, not by sorting).
    Source: P10, algorithm 1.
    """
    weights = for_each(weight, len(tuned), "weight")
    deltas = [model - base for model in tuned]
    shares = for_each(density, len(tuned), "density")
    cuts = yield [Largest(d, s, tie_policy, scope) for d, s in zip(deltas, shares, strict=True)]
    deltas = [cut.trim(d) for cut, d in zip(cuts, deltas, strict=True)]
    merged = yield from elect_and_average(
        deltas,
        weights,
        weight_in_election=weight_in_election,
        zero_sign=zero_sign,
        normalize=normalize,
        scope=scope,
    )
    merged = weighted(merged, scale)
    merged += base
    return merged
