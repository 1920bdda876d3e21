"""Exact order statistics by radix selection, against sorting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nett.core import order
from nett.core.order import Cut, Largest
from nett.core.passes import Chunk
from support.merging import trim_all, trim_exact
from support.tensors import Array


def cut_of(chunks: list[Array], density: float, ties: Any, sample: Array | None = None) -> list[Cut]:
    """Run the rounds of :class:`Largest` over chunks, in an order of its own each round; perhaps from a guess."""
    asks = [Largest(c, density, ties) for c in chunks]
    known = asks[0].foregone()
    done, rounds = known is not None, 0
    if sample is not None and not done and asks[0].by_sample:
        known = asks[0].guess(Largest(sample, density, ties).look(None, None, Chunk("t", 0, 0)))
    while not done:
        parts = []
        for group in (range(0, len(chunks), 2), range(1, len(chunks), 2)):  # two threads
            seen = None
            for i in reversed(group):
                seen = asks[i].look(known, seen, Chunk("t", 0, 0, i))
            if seen is not None:
                parts.append(seen)
        joined = parts[0]
        for part in parts[1:]:
            joined = asks[0].join(part, joined)
        known, done = asks[0].settle(known, joined)
        rounds += 1
        assert rounds <= 6
    return [ask.tell(known, Chunk("t", 0, 0, i)) for i, ask in enumerate(asks)]


def trimmed(
    values: Array,
    density: float,
    ties: Any,
    cuts: list[int] = [],  # noqa: B006
    sample: Array | None = None,
) -> Array:
    chunks = np.split(values, sorted(cuts))
    return np.concatenate([cut.trim(c) for cut, c in zip(cut_of(chunks, density, ties, sample), chunks, strict=True)])


coarse = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 1e-45, -1e-45, 1e-40, 3e38, 2.0**-126])
densities = st.one_of(st.sampled_from([0.0, 1e-9, 0.2, 0.5, 0.999, 1.0]), st.floats(0, 1))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@given(data=st.data(), density=densities, policy=st.sampled_from(["all", "lowest-index"]))
def test_largest_is_what_sorting_gives(kind: type, data: st.DataObject, density: float, policy: str) -> None:
    """Random arrays with many equals, zeros of both signs, subnormals and extremes; cut into chunks anywhere."""
    size = data.draw(st.integers(1, 70))
    width = 32 if kind is np.float32 else 64
    element = data.draw(st.sampled_from([coarse, st.floats(allow_nan=False, allow_infinity=False, width=width)]))
    values = data.draw(hnp.arrays(kind, size, elements=element))
    cuts = data.draw(st.lists(st.integers(0, size), max_size=4))
    sample = data.draw(st.one_of(st.none(), st.just(values[::3]), st.just(values * kind(0.25)), st.just(values)))
    with pytest.MonkeyPatch.context() as patch:  # with the short way that saves a reading, without, and in between
        patch.setattr(order, "_ENTRIES", data.draw(st.sampled_from([0, 3, 1 << 21])))
        found = trimmed(values, density, policy, cuts, sample)
    expected = (trim_all if policy == "all" else trim_exact)(values, density)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, expected)
    if policy == "lowest-index" and 0 < density < 1:
        exact = max(1, int(size * density))
        assert np.count_nonzero(found) <= exact


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_threshold_is_numpys_partition(kind: type) -> None:
    """On larger arrays of several shapes of distribution, the k-th value itself."""
    rng = np.random.default_rng(0)
    for values in (
        rng.normal(size=20_001), rng.normal(size=20_001) * 1e-300, rng.integers(-3, 4, 20_001) * 0.1,
        np.exp(rng.normal(size=20_001) * 40), np.zeros(20_001), np.full(20_001, -7.0),
    ):  # fmt: skip
        with np.errstate(over="ignore", under="ignore"):
            array = np.nan_to_num(values.astype(kind), posinf=3e38)
        for density in (0.001, 0.2, 0.5, 0.97):
            (cut,) = cut_of([array], density, "all")
            k = array.size - int(array.size * density)
            threshold = np.partition(np.abs(array), k - 1)[k - 1]
            bits = np.array([cut.threshold], np.uint32 if kind is np.float32 else np.uint64)
            assert bits.view(kind)[0] == threshold


def test_a_good_guess_saves_a_round_and_a_bad_one_changes_nothing() -> None:
    """The window around the sample's threshold holds that of all; or it lies below, or above."""
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    ask, expected = Largest(values, 0.2), np.sort(np.abs(values))[-40_001]
    chunk = Chunk("t", 0, 0)
    for sample, first in ((values[::10], True), (values * np.float32(0.9), False), (values * np.float32(1.1), False)):
        known = ask.guess(Largest(sample, 0.2).look(None, None, chunk))
        known, done = ask.settle(known, ask.look(known, None, chunk))
        assert done == first and (known is None) == (not first)
        while not done:
            known, done = ask.settle(known, ask.look(known, None, chunk))
        assert np.uint32(ask.tell(known, chunk).threshold).view(np.float32) == expected


def test_k_rule_by_hand() -> None:
    """d = 5, density 0.4: k = 3; the third smallest and all above stay."""
    values = np.array([5, -1, 3, 2, -4], np.float32)
    np.testing.assert_array_equal(trimmed(values, 0.4, "all"), [5, 0, 3, 0, -4])
    np.testing.assert_array_equal(trimmed(values, 0.4, "lowest-index"), [5, 0, 0, 0, -4])
    np.testing.assert_array_equal(trimmed(values, 0.0, "all"), [5, 0, 0, 0, 0])  # k = 5: the largest itself
    np.testing.assert_array_equal(trimmed(values, 0.0, "lowest-index"), np.zeros(5))
    np.testing.assert_array_equal(trimmed(values, 1.0, "all"), values)
    ties = np.array([1, -1, 1, -1, 1], np.float32)
    np.testing.assert_array_equal(trimmed(ties, 0.4, "all"), ties)
    np.testing.assert_array_equal(trimmed(ties, 0.4, "lowest-index"), [1, -1, 0, 0, 0])
    np.testing.assert_array_equal(trimmed(ties, 0.4, "lowest-index", [1, 1, 4]), [1, -1, 0, 0, 0])


def test_known_is_plain_json() -> None:
    """It is journalled between rounds."""
    import json

    values = np.array([1, 1, 1, 2], np.float32)
    ask, known, done = Largest(values, 0.5, "lowest-index"), None, False
    while not done:
        known, done = ask.settle(known, ask.look(known, None, Chunk("", 0, 0)))
        assert json.loads(json.dumps(known)) == known
    assert ask.tell(known, Chunk("", 0, 0)).ties == 1


def test_memory_is_that_of_the_histogram() -> None:
    """What is kept between chunks does not grow with them."""
    seen = None
    for index in range(50):
        values = np.random.default_rng(index).normal(size=1000).astype(np.float32)
        seen = Largest(values, 0.2).look(None, seen, Chunk("", 0, 0, index))
    assert seen.bins.size == 1 << 16 and seen.bins.sum() == 50_000 and not seen.places
