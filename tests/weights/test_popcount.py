"""The compiled products: in threads, in groups with scales, counted word by word, and without numba."""

import numba
import numpy as np
import pytest

from nett.weights import popcount
from nett.weights.bit_planes import Layout, pack, unpack
from nett.weights.popcount_kernels import LANES, intrinsic_for


def odd_numbers(rng, rows, columns, bits):
    return 2 * rng.integers(0, 2**bits, (rows, columns)) - (2**bits - 1)


@pytest.fixture(params=["compiled", "numpy"])
def _either(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize(("length", "group"), [(130, 0), (130, 64), (150, 32), (96, 24)])
def test_groups_with_scales_are_sums_of_scaled_products(length, group):
    rng = np.random.default_rng(length + group)
    weights, x = odd_numbers(rng, 11, length, 3), odd_numbers(rng, 4, length, 4)
    layout = Layout.of(length, group)
    scale = rng.uniform(0.5, 2, (11, layout.groups)).astype(np.float32)
    step = rng.uniform(0.5, 2, 4).astype(np.float32)
    wide = np.repeat(scale, layout.lengths, axis=1).astype(np.float64)
    expected = (x * step[:, None].astype(np.float64)) @ (weights * wide).T
    tiles, planes = popcount.tiled(pack(weights, 3, group)), pack(x, 4, group)
    found = popcount.scaled(tiles, scale, planes, step, layout)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("bits", range(1, 9))
def test_inputs_are_rounded_to_the_nearest_odd_multiple(bits):
    rng = np.random.default_rng(bits)
    values = rng.normal(size=(5, 150)).astype(np.float32)
    step = rng.uniform(0.01, 1, 5).astype(np.float32)
    planes = popcount.rounded(values, bits, step, Layout.of(150, 40))
    found = unpack(planes, 150, 40)
    levels = np.arange(-(2**bits) + 1, 2**bits, 2)
    away = np.abs(values[:, :, None].astype(np.float64) - levels * step[:, None, None].astype(np.float64))
    chosen = np.abs(values - found * step[:, None].astype(np.float64))
    np.testing.assert_allclose(chosen, away.min(axis=2), atol=1e-6)


def test_threads_and_the_order_of_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    weights, x = odd_numbers(rng, 37, 500, 2), odd_numbers(rng, 9, 500, 2)
    tiles, planes = popcount.tiled(pack(weights, 2)), pack(x, 2)
    monkeypatch.setattr(popcount, "_ALONE", 0)
    monkeypatch.setattr(popcount, "_NEAR", 300)  # two inputs at a time
    for threads in (1, 2, 3, 16):
        assert np.array_equal(popcount.exact(tiles, 37, planes, 500, threads), x @ weights.T)


@pytest.mark.parametrize("direct", [True, False])
def test_both_ways_of_counting_find_the_bits_that_differ(direct):
    """``direct`` is what processors with a vector instruction for it compile; here LLVM writes it otherwise."""
    count = intrinsic_for(direct)

    @numba.njit
    def differences(w, x, words):
        sums = np.full(LANES, 5, np.int64)
        count(sums, w, words, x, 2, words - 1, 1)  # from w's second row of eight and x's third word on
        return sums

    rng = np.random.default_rng(5)
    words = 41
    w = rng.integers(0, 2**64, (2, words, LANES), np.uint64)
    x = rng.integers(0, 2**64, words + 1, np.uint64)
    expected = 5 + 2 * np.bitwise_count(w[1, : words - 1] ^ x[2:, None]).sum(axis=0, dtype=np.int64)
    assert np.array_equal(differences(w.reshape(-1), x, words), expected)


def test_tiles_are_rows_side_by_side():
    planes = np.arange(2 * 3 * 5, dtype=np.uint64).reshape(2, 3, 5)
    tiles = popcount.tiled(planes)
    assert tiles.shape == (1, 3, 5, LANES)
    assert np.array_equal(tiles[0, :, :, 1], planes[1])
    assert not tiles[0, :, :, 2:].any()
    assert np.array_equal(popcount.untiled(tiles, 2), planes)


def test_no_inputs_give_no_products():
    tiles = popcount.tiled(pack(np.ones((3, 70), int), 1))
    assert popcount.exact(tiles, 3, np.zeros((0, 2, 2), np.uint64), 70).shape == (0, 3)
