"""Linear merging: a weighted average of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from nett.core.dtypes import Array
from nett.core.registry import method
from nett.merge.protocol import for_each, share, weighted_sum


@method(
    title="Linear merging (model soup)",
    identity={},
    symmetric=True,
    mergekit={"required": ["weight"]},
)
def linear(tuned: Sequence[Array], *, weight: float | Sequence[float] = 1.0, normalize: bool = True) -> Array:
    """Average the checkpoints, each with its weight.

    Formula: merged = sum_i w_i x_i / sum_i w_i   (without the division if normalize is false)
    Args:
        weight: weight of a model; one value, or one for each model.
        normalize: divide by the sum of the weights.
    When to use: fine-tunes of one base on the same task, which differ by seed or hyper-parameters.
    When not: models of different tasks (they cancel each other), or models without a common ancestor.
    Cost: reads every model once.
    Source: Wortsman et al. 2022, Model soups, section 2.
    """
    weights = for_each(weight, len(tuned), "weight")
    total = weighted_sum(tuned, weights)
    if normalize:
        total /= total.dtype.type(share(weights))
    return total
