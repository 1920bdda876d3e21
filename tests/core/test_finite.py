"""What is no number is counted, in both widths, wherever it stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nett.core.finite import count_non_finite


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 7, 4099])
def test_count(dtype: Any, size: int) -> None:
    values = np.full(size, np.finfo(dtype).max, dtype)
    values[1::3] = np.finfo(dtype).smallest_subnormal
    assert count_non_finite(values) == 0
    odd = np.array([np.nan, np.inf, -np.inf], dtype)
    places = np.flatnonzero(np.arange(size) % 5 == 0)
    values[places] = odd[places % 3]
    assert count_non_finite(values) == len(places)
    if size:
        values[0] = -np.array(np.nan, dtype)
        assert count_non_finite(values[:1]) == 1
