"""NearSwap against its formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nett.core.errors import UsageError
from nett.merge import nearswap
from support.merging import assert_same, family, tensor_by_tensor
from support.tensors import Array


@pytest.mark.parametrize("t", [0.0, 0.002, 0.05])
def test_command_line_is_the_formula(tmp_path: Path, t: float) -> None:
    models = family(tmp_path)

    def merge(ground: Array, tuned: list[Array]) -> Array:
        share = np.minimum(np.float32(t) / np.maximum(np.abs(ground - tuned[0]), np.float32(1e-6)), np.float32(1))
        return share * tuned[0] + (np.float32(1) - share) * ground

    found = models.merge("nearswap", "--t", str(t), models=[1])
    assert_same(found, models.as_stored(tensor_by_tensor(merge, models.base, models.tuned[1:2])))


def test_worked_example() -> None:
    """Near weights are swapped, far ones go t of the way."""
    base, other = np.array([0, 0, 1], np.float32), np.array([0.5, -4, 1], np.float32)
    np.testing.assert_array_equal(nearswap(base, [other], t=1.0), [0.5, -1, 1])


def test_one_model() -> None:
    with pytest.raises(UsageError, match="one model, but 2"):
        nearswap(np.zeros(2), [np.zeros(2), np.zeros(2)])


_array = hnp.arrays(np.float64, 9, elements=st.floats(-5, 5))


@given(_array, _array, st.floats(1e-3, 3))
def test_no_weight_moves_further_than_t(base: Array, other: Array, t: float) -> None:
    found = nearswap(base, [other], t=t)
    assert np.all(np.abs(found - base) <= t * (1 + 1e-9))
    assert np.all(np.abs(found - other) <= np.abs(base - other) * (1 + 1e-9))
