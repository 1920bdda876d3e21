"""One checkpoint passed through, scaled on request."""

from __future__ import annotations

from collections.abc import Sequence

from nett.core.dtypes import Array
from nett.core.errors import UsageError
from nett.core.registry import method
from nett.merge.protocol import weighted


@method(
    title="Passthrough",
    identity={},
    mergekit={"models": 1, "per_model": ["scale"]},
)
def passthrough(tuned: Sequence[Array], *, scale: float = 1.0) -> Array:
    """Write one model out as it is, each tensor times a factor.

    Formula: out = scale * x
    Args:
        scale: factor on every tensor.
    When to use: in recipes, to take tensors from one model, with a scale a layer if wanted.
    When not: to merge.
    Cost: reads one model once.
    Source: the field's usual name for it; no paper.
    """
    if len(tuned) != 1:
        raise UsageError(f"passthrough takes one model, but {len(tuned)} were given")
    return weighted(tuned[0], scale).copy()
