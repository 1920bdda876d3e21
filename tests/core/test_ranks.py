"""Exact order statistics against a sort."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nett.core.passes import Chunk
from nett.core.ranks import Extremes, Ranks
from support.tensors import Array

SHARES = [(0.0, 0), (1e-4, 0), (0.25, 0), (0.5, 0), (0.9, 0), (0.9999, -1), (1.0, -1)]


def places(size: int) -> list[int]:
    return [int(size * share) + shift for share, shift in SHARES]


def answer(values: Array, cuts: list[int], ask: Any) -> Any:
    """The rounds of an ask over chunks, joined in reverse, as threads might."""
    pieces = np.split(values, cuts)
    known, done = None, False
    while not done:
        seen = [ask(p).look(known, None, Chunk("", 0, 0, i)) for i, p in enumerate(pieces) if p.size]
        joined = seen.pop()
        while seen:
            joined = ask(values).join(joined, seen.pop())
        known, done = ask(values).settle(known, joined)
    return ask(values).tell(known, Chunk("", 0, 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_ranks_are_those_of_a_sort(dtype: Any, data: Any) -> None:
    finite = st.floats(allow_nan=False, width=np.dtype(dtype).itemsize * 8)
    values = data.draw(hnp.arrays(dtype, st.integers(1, 60), elements=finite | st.sampled_from([0.0, -0.0, 1.0, -1.0])))
    cuts = data.draw(st.lists(st.integers(0, values.size), max_size=4).map(sorted))
    ordered = np.sort(values)
    expected = [ordered[min(max(int(values.size * share) + shift, 0), values.size - 1)] for share, shift in SHARES]
    found = answer(values, cuts, lambda v: Ranks(v, places))
    np.testing.assert_array_equal(np.array(found, dtype), expected)
    assert answer(values, cuts, Extremes) == (ordered[0], ordered[-1])


def test_known_is_plain_json() -> None:
    """What is known between rounds goes through the journal."""
    import json

    values = np.linspace(-3, 3, 1001, dtype=np.float32)
    ask = Ranks(values, lambda size: [size // 10, size])
    known, done = ask.settle(None, ask.look(None, None, Chunk("", 0, 0)))
    assert not done
    again = json.loads(json.dumps(known))
    known, done = ask.settle(again, ask.look(again, None, Chunk("", 0, 0)))
    assert done
    assert ask.tell(known, Chunk("", 0, 0)) == [float(np.sort(values)[100]), 3.0]
