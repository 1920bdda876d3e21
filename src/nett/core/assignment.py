"""Linear assignment, as scipy solves it."""

from __future__ import annotations

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import missing_extra


def assigned(alike: Array) -> Array:
    """``[n]``: the column that goes with each row of ``alike`` (``[n, n]``), so that the sum of the pairs is largest.

    Refused where scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise missing_extra("scipy", "models", "matching units") from error
    return np.asarray(linear_sum_assignment(alike, maximize=True)[1])
