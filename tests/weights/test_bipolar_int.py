"""Rounding to bipolar integers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nett
from nett.core.errors import NettError, Refused
from nett.weights.bipolar_int import nearest, scales


def nearest_level(values, scale, bits):
    """By looking at every level, float64 NumPy."""
    levels = np.arange(-(2**bits) + 1, 2**bits, 2) * np.float64(scale)
    return levels[np.abs(values[..., None] - levels).argmin(axis=-1)]


@pytest.mark.parametrize("bits", range(1, 8))
def test_every_weight_goes_to_the_nearest_level_of_its_group(bits):
    weight = torch.from_numpy(np.random.default_rng(bits).normal(size=(6, 96)).astype(np.float32))
    found = nett.weights.bipolar_int(weight, bits=bits, group=32, search=False)
    assert found.bits == bits + 1
    assert found.zero is None
    assert found.scale.shape == (6, 3)
    codes = found.codes.numpy().astype(int)
    assert (codes % 2 == 1).all()
    assert np.abs(codes).max() == 2**bits - 1
    values, dense = weight.double().numpy().reshape(18, 32), found.dense().double().numpy().reshape(18, 32)
    for row, scale in enumerate(found.scale.double().numpy().reshape(-1)):
        assert scale == pytest.approx(np.abs(values[row]).max() / (2**bits - 1), rel=1e-6)
        expected = nearest_level(values[row], scale, bits)
        np.testing.assert_allclose(np.abs(dense[row] - values[row]), np.abs(expected - values[row]), atol=1e-6)


def test_one_bit_with_search_is_the_mean_magnitude():
    """The least squares answer for signs (Rastegari et al. 2016, equation 6)."""
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32))
    found = nett.weights.bipolar_int(weight, bits=1, group=-1)
    np.testing.assert_allclose(found.scale[:, 0].numpy(), weight.abs().mean(1).numpy(), rtol=1e-6)


@settings(max_examples=40)
@given(bits=st.integers(1, 7), seed=st.integers(0, 1000), heavy=st.booleans())
def test_search_is_never_worse_than_the_whole_range(bits, seed, heavy):
    rng = np.random.default_rng(seed)
    drawn = rng.standard_t(2, (3, 64)) if heavy else rng.normal(size=(3, 64))
    values = torch.from_numpy(drawn.astype(np.float32))
    errors = []
    for search in (False, True):
        scale = scales(values, bits, search=search)
        errors.append((nearest(values, scale, bits) * scale[:, None] - values).square().sum(-1))
    assert (errors[1] <= errors[0]).all()


def test_search_comes_near_the_best_of_a_fine_grid():
    """2 bits, normal values: the error of the best uniform quantiser is 0.1188 of the variance (Max 1960, table II)."""
    values = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 20000)).astype(np.float32))
    scale = scales(values, 2)
    error = float((nearest(values, scale, 2) * scale - values).square().mean() / values.square().mean())
    assert error == pytest.approx(0.1188, rel=0.03)
    assert float(scale) == pytest.approx(0.4979, rel=0.05)


def test_weights_on_the_grid_come_back():
    rng = np.random.default_rng(2)
    odd = 2 * rng.integers(0, 8, (5, 64)) - 7
    odd[:, 0] = 7
    weight = torch.from_numpy(odd * 0.25).to(torch.bfloat16)
    found = nett.weights.bipolar_int(weight, bits=3, group=64)
    assert found.scale.dtype == torch.bfloat16
    assert torch.equal(found.dense(), weight)


def test_zeros_and_half_precision_stay_finite():
    weight = torch.zeros(2, 64, dtype=torch.float16)
    weight[1] = 1e-7
    found = nett.weights.bipolar_int(weight, bits=7, group=-1)
    assert torch.isfinite(found.dense()).all()
    assert (found.scale > 0).all()


def test_a_group_that_does_not_divide_is_refused():
    with pytest.raises(Refused, match="70 columns cannot be cut into groups of 32"):
        nett.weights.bipolar_int(torch.ones(2, 70), group=32)
    assert nett.weights.bipolar_int(torch.ones(2, 70)).scale.shape == (2, 1)


@pytest.mark.parametrize("bits", [0, 8])
def test_bits_beyond_the_range_are_named(bits):
    with pytest.raises(NettError, match="1 <= bits <= 7"):
        nett.weights.bipolar_int(torch.ones(2, 64), bits=bits)


def test_the_levels_fit_the_integers_that_files_hold():
    for bits in range(1, 8):
        found = nett.weights.bipolar_int(torch.randn(3, 64), bits=bits)
        assert int(found.codes.abs().max()) <= 2 ** (found.bits - 1) - 1
