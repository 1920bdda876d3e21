"""Counting what is no number. With NumPy's own loop, so that work without compiled kernels does not wait for numba."""

from __future__ import annotations

import numpy as np

from nett.core.dtypes import Array


def count_non_finite(values: Array) -> int:
    """How many NaN or infinite values."""
    return int(values.size - np.count_nonzero(np.isfinite(values)))
