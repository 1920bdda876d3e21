"""PCB-Merging (P74) against its formulas in plain NumPy, and the authors' code by stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nett.merge import pcb
from support.merging import family
from support.tensors import Array, flat

# PCB_merge of the authors' pcb-merging.py (commit 5897888), torch 2.13.0 on a CPU, of the three rows that
# `_rows` makes, with pcb_ratio 0.3; seven digits.
AUTHORS = [
    4.3547726, 0.0, 1.0467412, -1.0965738, -0.8645927, 3.1730747, 0.0, 0.0, -0.9566936, 0.8137153,
    -2.9587872, -4.2747602, 1.0890353, -0.5239233, 1.0407522, 4.2091455, -2.5335264, -1.4459918, 0.0, 1.4650989,
    0.0, 1.7124312, 0.0, 0.5101169, 0.0, 1.3039355, 0.0, 2.595391, 0.0, 0.975815,
    0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.2745041, 0.0, 0.0, 1.5427719,
]  # fmt: skip


def _rows() -> list[Array]:
    rng = np.random.default_rng(74)
    return list((rng.normal(size=(3, 40)) * np.array([[1.0], [0.5], [2.0]])).astype(np.float32))


def norm(x: Array) -> Array:
    spread = x.max() - x.min()
    return (x - x.min()) / spread if spread > 0 else np.ones_like(x)


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def paper(taus: list[Array], ratio: float, scale: list[float]) -> Array:
    """Equations 1 to 5 of P74 over whole task vectors, in float64."""
    t = np.array(taus, np.float64)
    count, size = t.shape
    total, divisor = np.zeros(size), np.zeros(size)
    for i in range(count):
        intra = softmax(count * norm(t[i] * t[i]))
        inter = np.sum([softmax(norm(t[i] * t[j])) for j in range(count)], axis=0)
        score = intra * inter * size * size
        score *= score >= np.sort(score)[int(size * (1 - ratio))]
        total += score * scale[i] * t[i]
        divisor += score
    return np.divide(total, divisor, out=np.zeros(size), where=divisor > 0)


def authors(taus: list[Array], ratio: float, scale: list[float]) -> Array:
    """The authors' code as a formula, in float64."""
    t = np.array(taus, np.float64)
    count, size = t.shape
    total, divisor = np.zeros(size), np.zeros(size)
    for i in range(count):
        ordered = np.sort(np.abs(t[i]))
        sizes = np.clip(np.abs(t[i]), ordered[int(size * 1e-4)], ordered[int(size * (1 - 1e-4)) - 1])
        spread = sizes.max() - sizes.min()
        place = (sizes - sizes.min()) / spread if spread > 0 else np.zeros(size)
        score = np.exp(count * place**2) * np.tanh(t[i] * t.sum(axis=0))
        score = np.maximum(score, np.sort(score)[int(size * (1 - ratio))])
        share = norm(score)
        total += share * scale[i] * np.sign(t[i]) * sizes
        divisor += share
    return total / np.maximum(divisor, 1e-12)


def test_authors_code() -> None:
    found = pcb(np.zeros(40, np.float32), _rows(), variant="repo", ratio=0.3)
    np.testing.assert_allclose(found, AUTHORS, atol=1e-6)


@pytest.mark.parametrize("variant,formula", [("paper", paper), ("repo", authors)])
@pytest.mark.parametrize("ratio", [0.05, 0.3, 1.0])
def test_command_line_is_the_formula(tmp_path: Path, variant: str, formula: Any, ratio: float) -> None:
    """Scores and thresholds go over the whole model, not tensor by tensor."""
    models = family(tmp_path)
    found = models.merge("pcb", "--variant", variant, "--ratio", str(ratio), "--scale", "0.5,1,1.5")
    base = flat(models.base)
    taus = [flat(m) - base for m in models.tuned]
    expected = base + formula(taus, ratio, [0.5, 1.0, 1.5])
    np.testing.assert_allclose(flat(found), expected, rtol=2e-6, atol=2e-7)


def test_worked_example() -> None:
    """Two tasks, three entries, everything kept: scores by hand.

    tau_1 = (1, 0, 2), tau_2 = (1, 2, 0). norm(tau_1^2) = (1/4, 0, 1), norm(tau_1 tau_2) = (1, 0, 0).
    """
    base = np.zeros(3, np.float32)
    tuned = [np.array([1, 0, 2], np.float32), np.array([1, 2, 0], np.float32)]
    found = pcb(base, tuned, ratio=1.0)
    # The first entry is 1 in both, whatever the scores; the others are 2 times the share of the task that moved.
    e = np.exp
    squares, cross = e(0.25) + 1 + e(1.0), e(1.0) + 2
    moved = e(2.0) * (e(1.0) / squares + 1 / cross)
    still = 1.0 * (1 / squares + 1 / cross)
    np.testing.assert_allclose(found, [1, 2 * moved / (moved + still), 2 * moved / (moved + still)], rtol=1e-6)


def test_zero_task_vectors_change_nothing() -> None:
    """All entries equal: no division by zero, in either variant."""
    base = np.arange(5, dtype=np.float32)
    for variant in ("paper", "repo"):
        np.testing.assert_array_equal(pcb(base, [base.copy(), base.copy()], variant=variant), base)


_values = hnp.arrays(np.float32, (3, 31), elements=st.floats(-2, 2, width=32))


@given(_values, st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from(["paper", "repo"]))
def test_an_average_stays_between_its_models(taus: Array, ratio: float, variant: str) -> None:
    """With scale 1 each entry is an average of the task vectors' entries and 0: it never leaves their range."""
    found = pcb(np.zeros(31, np.float32), list(taus), ratio=ratio, variant=variant)
    slack = 1e-5 * np.abs(taus).max()
    assert np.all(found <= np.maximum(taus.max(axis=0), 0) + slack)
    assert np.all(found >= np.minimum(taus.min(axis=0), 0) - slack)
