"""Asks, chunks, random numbers, and kernels over plain arrays."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nett.core.errors import NettError
from nett.core.passes import Chunk, Total, Uniform, Waiting, advance, on_arrays
from support.tensors import Array


def draw(start: int, size: int, *, seed: int = 0, stream: int = 0, tensor: str = "t") -> Array:
    return np.asarray(Uniform(size, seed, stream).tell({}, Chunk(tensor, start, start + size)))


@given(st.integers(0, 200), st.lists(st.integers(1, 60), max_size=6), st.integers(0, 5))
def test_uniform_does_not_see_chunks(start: int, sizes: list[int], seed: int) -> None:
    """Any way of cutting gives the numbers of the whole."""
    whole = draw(0, start + sum(sizes) + 1, seed=seed)
    at = start
    for size in sizes:
        np.testing.assert_array_equal(draw(at, size, seed=seed), whole[at : at + size])
        at += size


def test_uniform_far_into_a_tensor() -> None:
    """Beyond 2^32 elements it still jumps, not walks, and does not repeat itself."""
    far = draw((1 << 40) + 3, 100)
    np.testing.assert_array_equal(far[5:], draw((1 << 40) + 8, 95))
    assert not np.array_equal(far, draw(3, 100))


def test_uniform_is_uniform() -> None:
    """Range, mean, variance and the counts of sixteen bins (chi-square, far tail)."""
    values = draw(0, 400_000)
    assert values.dtype == np.float32 and values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 5 * (1 / 12 / values.size) ** 0.5
    counts = np.histogram(values, bins=16, range=(0, 1))[0]
    expected = values.size / 16
    assert np.sum((counts - expected) ** 2 / expected) < 45


def test_uniform_depends_on_all_it_should() -> None:
    first = draw(0, 200)
    for other in (draw(0, 200, seed=1), draw(0, 200, stream=1), draw(0, 200, tensor="u")):
        assert np.mean(first == other) < 0.05
    # no two of seed, stream and name may run together
    assert not np.array_equal(draw(0, 50, seed=1, stream=11), draw(0, 50, seed=11, stream=1))
    np.testing.assert_array_equal(first, draw(0, 200))


def test_uniform_is_the_same_on_every_machine() -> None:
    """Philox with a BLAKE2b key of `seed/stream/tensor`: values written down once."""
    import hashlib

    key = np.frombuffer(hashlib.blake2b(b"0/0/t", digest_size=16).digest(), np.uint64)
    words = np.random.Philox(key=key).random_raw(8).view(np.uint32)
    np.testing.assert_array_equal(draw(0, 16), (words >> 8).astype(np.float32) / np.float32(1 << 24))


def test_uniform_asks_nothing() -> None:
    ask = Uniform(3)
    assert ask.foregone() == {}
    for call in (lambda: ask.look({}, None, Chunk("", 0, 3)), lambda: ask.join({}, {}), lambda: ask.settle({}, {})):
        with pytest.raises(NettError):
            call()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12), st.randoms())
def test_total_adds_in_chunk_order(values: list[float], chance: Any) -> None:
    """Whatever the order in which chunks come and accumulators are joined."""
    expected = 0.0
    for value in values:
        expected += value
    order = list(range(len(values)))
    chance.shuffle(order)
    parts: list[Any] = [None, None, None]
    for i in order:
        ask = Total({"sum": values[i], "one": 1})
        which = chance.randrange(3)
        parts[which] = ask.look(None, parts[which], Chunk("", 0, 0, i))
    chance.shuffle(parts)
    joined: Any = {}
    for part in parts:
        joined = ask.join(joined, part or {})
    known, done = ask.settle(None, joined)
    assert done and known == {"sum": expected, "one": len(values)} == json.loads(json.dumps(known))
    assert ask.tell(known, Chunk("", 0, 0)) == known


def two_levels(values: Array) -> Generator[Any, Any, Array]:
    (first,) = yield [Total({"sum": float(values.sum())})]
    (second,) = yield [
        Total({"sum": first["sum"] * 2}),
    ]
    return values + np.float32(second["sum"])


def test_advance_stops_where_it_is_not_told() -> None:
    values = np.ones(3, np.float32)
    asked: list[int] = []

    def told(level: int, asks: Any) -> list[Any] | None:
        asked.append(level)
        return [{"sum": 3.0}] if level == 0 else None

    waiting = advance(two_levels(values), told)
    assert isinstance(waiting, Waiting) and waiting.level == 1 and asked == [0, 1]
    assert advance(np.array([7]), told).tolist() == [7]  # a kernel that asks nothing is its own result


def test_on_arrays_answers_by_itself() -> None:
    whole = on_arrays(two_levels, lambda _: True)
    np.testing.assert_array_equal(whole(np.ones((2, 2), np.float32)), np.full((2, 2), 9))
    assert whole.kernel is two_levels and whole.__name__ == "two_levels"


def test_on_arrays_flattens_and_widens() -> None:
    seen: list[Any] = []

    def kernel(base: Array, tuned: list[Array], *, k: int = 1) -> dict[str, Any]:
        seen.append((base.shape, base.dtype, [t.dtype for t in tuned]))
        return {"a": base * k, "b*": tuned}

    made = on_arrays(kernel, lambda _: True)(np.ones((2, 3), np.float16), [np.ones((2, 3), np.float64)], k=2)
    assert seen == [((6,), np.float32, [np.float64])]
    assert made["a"].shape == made["b*"][0].shape == (2, 3)
    on_arrays(kernel, lambda _: False)(np.ones((2, 3)), [np.ones((2, 3))])
    assert seen[-1][0] == (2, 3)


def test_on_arrays_refuses_what_does_not_line_up() -> None:
    whole = on_arrays(lambda base, tuned: base, lambda _: True)
    with pytest.raises(NettError, match=r"\(3,\) beside \(2,\)"):
        whole(np.ones(2), [np.ones(2), np.ones(3)])
    with pytest.raises(NettError, match="at least one array"):
        whole([], [])
