"""Arcee Fusion against its description: salience, quartiles, threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nett.core.errors import UsageError
from nett.merge import arcee_fusion
from support.merging import family
from support.tensors import Array


def salience(base: Array, other: Array) -> Array:
    def softmax(x: Array) -> Array:
        powers = np.exp(x - x.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True) + 1e-8

    a, b = other.astype(np.float64), base.astype(np.float64)
    p, q = softmax(a), softmax(b)
    return np.abs(a - b) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)


def test_command_line_is_the_description(tmp_path: Path) -> None:
    models = family(tmp_path)
    found = models.merge("arcee_fusion", models=[0])
    for name, base in models.base.items():
        other = models.tuned[0][name]
        score = salience(base, other)
        low, middle, high = np.sort(score.ravel())[[int(q * (score.size - 1)) for q in (0.25, 0.5, 0.75)]]
        threshold = middle + 1.5 * (high - low)
        clear = np.abs(score - threshold) > 1e-6 * np.abs(score).max()  # float32 against float64
        expected = np.where(score >= threshold, other, base)
        np.testing.assert_array_equal(found[name][clear], expected[clear])
        assert clear.mean() > 0.9 or clear.size < 4
        assert name == "bias" or 0 < (found[name] != base).mean() < 0.5


def test_one_weight_that_moved_is_taken_over() -> None:
    base = np.zeros((3, 4), np.float32)
    other = base.copy()
    other[1, 2] = 2.0
    np.testing.assert_array_equal(arcee_fusion(base, [other]), other)


def test_one_model() -> None:
    with pytest.raises(UsageError, match="one model, but 2"):
        arcee_fusion(np.zeros(2), [np.zeros(2), np.zeros(2)])
