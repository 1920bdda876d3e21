"""Task arithmetic: add the task vectors."""

from __future__ import annotations

from collections.abc import Sequence

from nett.core.dtypes import Array
from nett.core.registry import method
from nett.merge.protocol import for_each, share, weighted, weighted_sum


@method(
    title="Task arithmetic",
    needs=["base"],
    identity={"scale": 1.0},
    symmetric=True,
    mergekit={"rename": {"lambda": "scale"}, "required": ["weight"], "ignored": ["int8_mask", "density", "rescale"]},
)
def task_arithmetic(
    base: Array,
    tuned: Sequence[Array],
    *,
    weight: float | Sequence[float] = 1.0,
    scale: float = 1.0,
    normalize: bool = False,
) -> Array:
    """Add to the base the weighted sum of what each fine-tune changed.

    Formula: merged = base + scale * sum_i w_i (x_i - base)   (divided by sum_i w_i if normalize)
    Args:
        weight: weight of a model's task vector; one value, or one for each model.
        scale: factor on the sum of the task vectors; tune it on validation data (0.3 to 1 is usual).
        normalize: divide by the sum of the weights.
    When to use: the baseline to beat; tuned well, it often is not beaten on small models.
    When not: many tasks that pull the same weights in opposite directions.
    Cost: reads every model once.
    Source: Ilharco et al. 2023, Editing models with task arithmetic, section 2.
    """
    weights = for_each(weight, len(tuned), "weight")
    total = weighted_sum([model - base for model in tuned], weights)
    if normalize:
        total /= total.dtype.type(share(weights))
    total = weighted(total, scale)
    total += base
    return total
