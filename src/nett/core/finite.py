"""Counting what is no number, from the bits: one pass, no array of booleans."""

from __future__ import annotations

from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit


@jit
def _non_finite(bits: Array, exponent: Any) -> int:
    found = np.int64(0)
    for i in range(bits.size):
        found += np.int64((bits[i] & exponent) == exponent)
    return int(found)


def count_non_finite(values: Array) -> int:
    """How many NaN or infinite values."""
    if values.dtype == np.float64:
        return int(_non_finite(values.ravel().view(np.uint64), np.uint64(0x7FF << 52)))
    return int(_non_finite(values.ravel().view(np.uint32), np.uint32(0xFF << 23)))
