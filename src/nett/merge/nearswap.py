"""NearSwap: the other model where it is near the base, a step towards it where it is far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import UsageError
from nett.core.registry import Between, method

_LEAST = 1e-6  # differences below count as this large


@method(title="NearSwap", needs=["base"], identity={"t": 1e6}, mergekit={"required": ["t"], "models": 1})
def nearswap(base: Array, tuned: Sequence[Array], *, t: Annotated[float, Between(0)] = 1e-3) -> Array:
    """Take the other model's weight where it differs from the base by less than t, else go t towards it.

    Formula: merged = w x + (1 - w) base,  w = min(1, t / max(|x - base|, 1e-6))
    Args:
        t: the difference up to which a weight is taken over whole; no weight moves further than this.
    When to use: to give a strong base a touch of another model, with a bound on what can change.
    When not: to merge models as equals.
    Cost: reads both models once.
    Source: alchemonaut's NearSwap, published with the model QuartetAnemoi-70B-t0.0001.
    """
    if len(tuned) != 1:
        raise UsageError(f"nearswap goes from the base to one model, but {len(tuned)} were given")
    kind = base.dtype.type
    weight = np.minimum(kind(t) / np.maximum(np.abs(base - tuned[0]), kind(_LEAST)), kind(1))
    return np.asarray(weight * tuned[0] + (kind(1) - weight) * base)
