"""The scores of stored chunks against loops written from the paper's equations."""

from __future__ import annotations

from itertools import combinations
from math import exp

import numpy as np
import pytest

from nett.cache.chunk_scores import Attended, context_impact, disorder, fix_overhead, most_dependent, overlap


def made(seed: int, lengths: tuple[int, ...], n: int) -> Attended:
    rng = np.random.default_rng(seed)
    return Attended(tuple("abcdefgh"[: len(lengths)]), lengths, rng.random((n, len(lengths))), rng.random(n) + 0.1)


def plain_impact(a: Attended) -> float:
    across = 0.0
    for j, length in enumerate(a.lengths):
        inter = 0.0
        for t in range(len(a.intra)):
            inter += a.inter[t, j]
        across += inter / (len(a.intra) * length)
    within = sum(a.intra) / len(a.intra) ** 2
    return float(1 / (1 + exp(-across / within)))


def plain_overlap(a: Attended, new: list[str]) -> float:
    total = kept = 0.0
    for j, name in enumerate(a.before):
        inter = sum(a.inter[t, j] for t in range(len(a.intra)))
        total += inter
        kept += inter if name in new else 0.0
    return float(kept / total)


def plain_disorder(old: list[str], new: list[str]) -> float:
    common = [n for n in old if n in new]
    pairs = list(combinations(common, 2))
    return sum(new.index(x) > new.index(y) for x, y in pairs) / len(pairs) if pairs else 0.0


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_the_equations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = tuple(int(k) for k in rng.integers(1, 9, rng.integers(1, 6)))
    attended = made(seed, lengths, int(rng.integers(1, 12)))
    new = [str(n) for n in rng.permutation(list("abcdefgh"))[: rng.integers(1, 8)]]
    beta, gamma, cci = plain_overlap(attended, new), plain_disorder(list(attended.before), new), plain_impact(attended)
    assert context_impact(attended) == pytest.approx(cci, abs=1e-12) and 0.5 <= cci < 1
    assert overlap(attended, new) == pytest.approx(beta, abs=1e-12)
    assert disorder(attended.before, new) == pytest.approx(gamma, abs=1e-12)
    for alpha in (0.3, 1.0, 3.0):
        assert fix_overhead(attended, new, alpha) == pytest.approx(
            min(1, alpha * cci * (1 - beta * (1 - gamma))), abs=1e-12
        )
    count = int(rng.integers(0, len(attended.intra) + 1))
    order = sorted(range(len(attended.intra)), key=lambda t: (-sum(attended.inter[t]), t))
    assert most_dependent(attended, count).tolist() == sorted(order[:count])


def test_by_hand() -> None:
    """Two chunks of 2 tokens before, 0.4 and 0.2 of attention to them; within 1.4: a = 0.15, b = 0.35; in the other order all
    pairs are turned."""
    attended = Attended(("x", "y"), (2, 2), np.array([[0.3, 0.1], [0.1, 0.1]]), np.array([0.6, 0.8]))
    assert context_impact(attended) == pytest.approx(1 / (1 + exp(-0.15 / 0.35)))
    assert overlap(attended, ["x", "z"]) == pytest.approx(2 / 3)
    assert disorder(("x", "y"), ["y", "z", "x"]) == 1.0
    assert fix_overhead(attended, ["x", "y"], 5.0) == 0.0, "the same context in the same order"
    assert fix_overhead(attended, ["z"], 1.0) == pytest.approx(context_impact(attended))
    without = attended.without({"x"})
    assert without.before == ("y",) and overlap(without, ["x"]) == 0.0 and attended.without({"q"}) is attended


def test_nothing_before() -> None:
    """A chunk that was first has seen no context: it fits where there is none now."""
    alone = Attended((), (), np.zeros((3, 0)), np.ones(3))
    assert context_impact(alone) == 0.5 and overlap(alone, []) == 1.0 and overlap(alone, ["x"]) == 0.0
    assert fix_overhead(alone, [], 1.0) == 0.0 and fix_overhead(alone, ["x"], 1.0) == 0.5
