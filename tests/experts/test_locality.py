"""SRP and SCH of P17 against brute force in plain Python, on small traces.

The cache was also run against ``calc_fsf`` of the authors' repository (ljcleo/moe-lrc, commit 7b3ca46) on 60 random traces of 3
to 19 experts: the largest difference of a rate was 3e-8, which is float32 there. ``STORED`` is one of its answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nett.experts.locality import (
    add_choices,
    best_fit,
    cache_hits,
    chance_fit,
    enough,
    knee,
    rates,
    segment_counts,
)
from support.locality import sch, srp

SEQUENCE = [[0, 1], [0, 2], [0, 1], [3, 1], [0, 1], [2, 3], [2, 1], [0, 1]]
STORED = [0.25, 0.5, 0.8125, 1.0]  # calc_fsf(SEQUENCE, num_experts=4, future_len=3)


def drawn(seed: int, *, tokens: int = 40, experts: int = 6, chosen: int = 2) -> Any:
    rng = np.random.default_rng(seed)
    odds = rng.dirichlet(np.full(experts, 0.5)) + 1e-3
    return np.stack([rng.choice(experts, chosen, replace=False, p=odds / odds.sum()) for _ in range(tokens)])


def counted(trace: Any, length: int, experts: int) -> tuple[Any, Any]:
    by_expert, pooled = np.zeros((experts, length + 1), np.int64), np.zeros(length + 1, np.int64)
    segment_counts(trace.astype(np.int16), length, by_expert, pooled)
    return by_expert, pooled


def hits(trace: Any, ahead: int, experts: int) -> Any:
    found = np.zeros(experts, np.int64)
    cache_hits(np.asarray(trace, np.int16), ahead, found)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("length", [1, 3, 8])
def test_srp_is_that_of_brute_force(seed: int, length: int) -> None:
    trace = drawn(seed)
    by_expert, pooled = counted(trace, length, 6)
    assert np.array_equal(by_expert.sum(0), pooled)
    segments = len(trace) - length + 1
    plain = np.array([[sum(e in t for t in trace[i : i + length].tolist()) for i in range(segments)] for e in range(6)])
    assert np.array_equal(by_expert, [np.bincount(row, minlength=length + 1) for row in plain])
    assert best_fit(pooled).value == pytest.approx(srp(trace.tolist(), length, 6), abs=1e-12)
    assert best_fit(by_expert[2]).value == pytest.approx(
        srp([[e for e in t if e == 2] for t in trace.tolist()], length, 3) if 2 in trace else 0.0, abs=1e-12
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ahead", [0, 1, 4, 100])
def test_cache_is_that_of_brute_force(seed: int, ahead: int) -> None:
    trace = drawn(seed, experts=5 + seed)
    found = rates(hits(trace, ahead, 5 + seed))
    for size in range(1, 6 + seed):
        assert found[size - 1] == pytest.approx(sch(trace.tolist(), ahead, size), abs=1e-12), size


def test_cache_is_that_of_the_authors() -> None:
    assert rates(hits(SEQUENCE, 3, 4)) == pytest.approx(STORED)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(0, 40))
def test_a_larger_cache_and_more_foresight_are_never_worse(seed: int, experts: int, ahead: int) -> None:
    trace = drawn(seed, experts=experts, chosen=1 + seed % (experts - 1))
    rate = rates(hits(trace, ahead, experts))
    assert (np.diff(rate) >= 0).all() and rate[-1] == 1.0 and rate[0] > 0
    by_expert, pooled = counted(trace, 5, experts)
    fit = best_fit(pooled)
    assert 0 < fit.value <= 1 and by_expert.sum() == experts * (len(trace) - 4)


def test_what_never_changes_is_served_by_what_is_chosen() -> None:
    trace = np.tile([[1, 4]], (30, 1))
    for length in (2, 7):
        fit = best_fit(counted(trace, length, 6)[1])
        assert fit.value == 1.0 and fit.size == 1.0
    assert rates(hits(trace, 4, 6)).tolist() == [0.5 / 30 + 0.5 * 29 / 30, 1, 1, 1, 1, 1]


def test_chance_is_what_independent_choices_give() -> None:
    """A long trace of independent choices comes near the floor, and one that keeps to its experts is far above it."""
    rng = np.random.default_rng(0)
    share = np.array([0.4, 0.3, 0.2, 0.1])
    loose = rng.choice(4, (20_000, 1), p=share)
    assert best_fit(counted(loose, 8, 4)[1]).value == pytest.approx(chance_fit(share, 8), abs=0.01)
    close = np.repeat(rng.choice(4, (2000, 1), p=share), 10, 0)
    assert best_fit(counted(close, 8, 4)[1]).value > chance_fit(share, 8) + 0.2


def test_short_sequences_have_no_segments() -> None:
    assert not counted(drawn(0, tokens=5), 6, 6)[0].any()
    assert best_fit(np.zeros(5, np.int64)) == (0.0, 0.0, 0)


def test_choices_are_added_up() -> None:
    trace, weight = drawn(3), np.random.default_rng(1).random((40, 2)).astype(np.float32)
    counts, mass, together = np.zeros(6, np.int64), np.zeros(6), np.zeros((6, 6), np.int64)
    add_choices(trace.astype(np.int16), weight, counts, mass, together)
    one = np.eye(6, dtype=np.int64)[trace].sum(1)
    assert np.array_equal(counts, one.sum(0)) and np.array_equal(together, one.T @ one)
    assert np.allclose(mass, [weight[trace == e].astype(np.float64).sum() for e in range(6)])


def test_the_size_that_pays() -> None:
    rate = np.array([0.2, 0.5, 0.8, 0.9, 0.95, 1.0])
    assert knee(rate, 2) == 3 and knee(rate, 6) == 6 and knee(np.linspace(0.5, 1, 6), 1) == 1
    assert enough(rate, 0.9) == 4 and enough(rate, 0.99) == 6 and enough(np.array([0.1, 0.2]), 0.9) == 2
