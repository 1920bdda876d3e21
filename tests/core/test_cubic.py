"""The cubic schedule against numbers from the formula by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nett.core.cubic import changes, cubic
from nett.core.errors import UsageError


def test_by_hand() -> None:
    """s_f = 0.9: half way 0.9 * (1 - 1/8) = 0.7875; a quarter of the way 0.9 * (1 - 27/64) = 0.5203125."""
    at = [cubic(t, start=100, steps=400, final=0.9) for t in (0, 100, 200, 300, 499, 500, 9000)]
    assert at == pytest.approx([0, 0, 0.5203125, 0.7875, 0.9 * (1 - 400**-3), 0.9, 0.9], abs=1e-15)
    assert at[-1] == at[-2] == 0.9  # exactly


def test_from_another_sparsity_and_in_steps() -> None:
    one: dict[str, Any] = {"start": 0, "steps": 100, "final": 0.5, "initial": 0.3, "every": 25}
    assert cubic(50, **one) == pytest.approx(0.5 - 0.2 * 0.125)
    assert cubic(74, **one) == cubic(50, **one) != cubic(75, **one)
    assert [t for t in range(-5, 130) if changes(t, start=0, steps=100, every=25)] == [0, 25, 50, 75, 100]
    assert [t for t in range(130) if changes(t, start=3, steps=10, every=4)] == [3, 7, 11, 13]


def test_one_shot() -> None:
    assert [cubic(t, start=7, steps=0, final=0.8) for t in (6, 7, 8)] == [0, 0.8, 0.8]
    assert [t for t in range(20) if changes(t, start=7, steps=0)] == [7]


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 500), st.integers(1, 60), st.integers(-50, 50))
def test_it_never_turns_round_and_changes_only_when_it_says(
    a: float, b: float, steps: int, every: int, start: int
) -> None:
    seen = [
        cubic(t, start=start, steps=steps, final=b, initial=a, every=every) for t in range(start - 3, start + steps + 3)
    ]
    assert seen[0] == a and seen[-1] == b
    rising = [y - x for x, y in pairwise(seen)]
    assert all(d * (b - a) >= -1e-15 for d in rising)
    assert min(a, b) - 1e-12 <= min(seen) and max(seen) <= max(a, b) + 1e-12
    for i, d in enumerate(rising):
        assert d == 0 or changes(start - 2 + i, start=start, steps=steps, every=every)


@pytest.mark.parametrize(
    "bad", [{"final": 1.2}, {"final": 0.5, "initial": -0.1}, {"final": 0.5, "steps": -1}, {"final": 0.5, "every": 0}]
)
def test_bad_parameters_are_named_with_their_range(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"<="):
        cubic(1, **{"start": 0, "steps": 10, **bad})
