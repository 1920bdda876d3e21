"""Rounding to nearest against its definition in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nett
from nett.core.errors import Refused, UsageError
from nett.weights.grid import group_for


def weight(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(7, 96)).astype(np.float32)).to(dtype)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 8), st.sampled_from([32, 48, 96, -1]), st.booleans(), st.integers(0, 5))
def test_equals_the_definition(bits: int, group: int, symmetric: bool, seed: int) -> None:
    matrix = weight(seed)
    answer = nett.weights.rtn(matrix, bits=bits, group=group, symmetric=symmetric)
    width = 96 if group == -1 else group
    values = matrix.double().numpy().reshape(7, -1, width)
    if symmetric:
        scale, zero = np.abs(values).max(-1) / ((2**bits - 1) / 2), np.zeros((7, 96 // width))
    else:
        low, high = np.minimum(values.min(-1), 0), np.maximum(values.max(-1), 0)
        scale = (high - low) / (2**bits - 1)
        zero = np.clip(np.round(-(2 ** (bits - 1)) - low / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert np.allclose(answer.scale.numpy(), scale, rtol=1e-6)
    assert answer.zero is None if symmetric else np.abs(answer.zero.numpy() - zero).max() <= 1
    error = np.abs(answer.dense().numpy().reshape(values.shape) - values).max(-1)
    clipped = scale / 2 if symmetric else 0  # around zero there is one number more below than above
    assert (error <= 0.5001 * scale + clipped + (0 if symmetric else scale)).all()


def test_searching_a_range_never_costs() -> None:
    for bits in (2, 3, 4):
        plain, searched = (nett.weights.rtn(weight(), bits=bits, search=s).dense() for s in (False, True))
        assert float((searched - weight()).square().sum()) <= float((plain - weight()).square().sum())


def test_scales_are_those_that_are_stored() -> None:
    """In bfloat16 the numbers are rounded by the scale that a loader will see."""
    matrix = weight(3, torch.bfloat16)
    answer = nett.weights.rtn(matrix, bits=8)
    assert answer.scale.dtype == torch.bfloat16 and answer.dense().dtype == torch.bfloat16
    codes = (matrix.float().reshape(7, -1, 32) / answer.scale.float().unsqueeze(-1)).round().clamp(-128, 127)
    assert torch.equal(answer.codes.float(), codes.reshape(7, 96))


def test_zeros_stay_zeros() -> None:
    for symmetric in (True, False):
        answer = nett.weights.rtn(torch.zeros(3, 64), symmetric=symmetric)
        assert torch.equal(answer.dense(), torch.zeros(3, 64))


@pytest.mark.parametrize(("columns", "group", "expected"), [(256, 0, 128), (192, 0, 64), (96, 0, 32), (50, 0, 50), (50, -1, 50), (64, 16, 16)])  # fmt: skip
def test_groups(columns: int, group: int, expected: int) -> None:
    assert group_for(columns, group) == expected


def test_bad_input() -> None:
    with pytest.raises(Refused, match="96 columns cannot be cut into groups of 40"):
        nett.weights.rtn(weight(), group=40)
    with pytest.raises(UsageError, match="2 <= bits <= 8"):
        nett.weights.rtn(weight(), bits=9)
