"""Bipolar integers as bit planes: packing, and exact products by exclusive or and population count."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nett.core.errors import UsageError
from nett.weights import popcount
from nett.weights.bit_planes import Layout, largest, pack, products, unpack


def odd_numbers(rng, rows, columns, bits):
    return 2 * rng.integers(0, 2**bits, (rows, columns)) - (2**bits - 1)


def test_the_planes_of_a_row_worked_out_by_hand():
    """-3 = 00, -1 = 01, 1 = 10, 3 = 11: the first number is the lowest bit of the first word."""
    planes = pack(np.array([[-3, -1, 1, 3]]), 2)
    assert planes.dtype == np.uint64
    assert planes.tolist() == [[[0b1010], [0b1100]]]


def test_groups_begin_on_a_word_of_their_own():
    codes = np.array([[1, 1, 1, -1, 1]])
    planes = pack(codes, 1, group=3)
    assert planes.tolist() == [[[0b111, 0b10]]]
    assert Layout.of(5, 3).lengths.tolist() == [3, 2]
    assert unpack(planes, 5, 3).tolist() == codes.tolist()


@given(
    bits=st.integers(1, 8),
    rows=st.integers(1, 5),
    columns=st.integers(1, 200),
    group=st.integers(0, 210),
    seed=st.integers(0, 99),
)
def test_unpacking_gives_back_what_was_packed(bits, rows, columns, group, seed):
    codes = odd_numbers(np.random.default_rng(seed), rows, columns, bits)
    assert np.array_equal(unpack(pack(codes, bits, group), columns, group), codes)


@pytest.mark.parametrize(("codes", "said"), [([[1, 2]], r"2 at \[0, 1\]"), ([[1], [5]], r"5 at \[1, 0\].*-3 to 3")])
def test_numbers_that_are_not_bipolar_are_named(codes, said):
    with pytest.raises(UsageError, match=said):
        pack(np.array(codes), 2)


@pytest.mark.parametrize("bits", [0, 9])
def test_widths_that_do_not_exist_are_refused(bits):
    with pytest.raises(UsageError, match="1 <= bits <= 8"):
        pack(np.array([[1]]), bits)


@pytest.mark.parametrize(("wide", "narrow"), list(itertools.product(range(1, 9), repeat=2)))
def test_products_of_every_two_widths_are_those_of_int64(wide, narrow):
    """Both ways, with and without compiled code, also where K is no multiple of 64 or of the 1024 that a block holds."""
    rng = np.random.default_rng([wide, narrow])
    for length in (int(rng.integers(1, 200)), 1024, int(rng.integers(1025, 2300))):
        rows, inputs = int(rng.integers(1, 20)), int(rng.integers(1, 6))
        weights, x = odd_numbers(rng, rows, length, wide), odd_numbers(rng, inputs, length, narrow)
        expected = x @ weights.T
        planes, given = pack(weights, wide), pack(x, narrow)
        assert np.array_equal(products(planes, given, Layout.of(length))[:, :, 0], expected)
        assert np.array_equal(popcount.exact(popcount.tiled(planes), rows, given, length), expected)


def test_the_largest_sums_do_not_overflow():
    length = 70_000  # 255 * 255 * 70,000 is more than an int32 holds
    ones = np.full((1, length), largest(8))
    planes = pack(ones, 8)
    assert popcount.exact(popcount.tiled(planes), 1, planes, length).tolist() == [[255 * 255 * length]]
    assert products(planes, planes, Layout.of(length)).tolist() == [[[255 * 255 * length]]]
