"""Model Stock against the paper's equations in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nett.core.errors import UsageError
from nett.merge import model_stock
from support.merging import family
from support.tensors import Array


def reference(base: Array, tuned: list[Array], filter_wise: bool) -> Array:
    """t = n cos / (1 + (n - 1) cos), the cosine a mean over all pairs of task vectors; per row where asked."""
    shape = base.shape
    width = shape[-1] if filter_wise and len(shape) > 1 else base.size
    ground = base.astype(np.float64).reshape(-1, width)
    deltas = [m.astype(np.float64).reshape(-1, width) - ground for m in tuned]
    count = len(deltas)
    cosines = []
    for i in range(count):
        for j in range(i + 1, count):
            norms = np.linalg.norm(deltas[i], axis=1) * np.linalg.norm(deltas[j], axis=1)
            cosines.append((deltas[i] * deltas[j]).sum(axis=1) / norms)
    cosine = np.mean(cosines, axis=0)
    divisor = 1 + (count - 1) * cosine
    finite = np.abs(divisor) > 1e-6  # opposing updates: no finite t, the base stays
    t = np.divide(count * cosine, divisor, out=np.zeros_like(cosine), where=finite)[:, None]
    mean = sum(deltas) / count
    return (ground + t * mean).reshape(shape)


@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_command_line_is_the_formula(tmp_path: Path, filter_wise: bool, count: int) -> None:
    models = family(tmp_path)
    words = ["--filter-wise"] if filter_wise else []
    found = models.merge("model_stock", *words, models=range(count))
    for name, base in models.base.items():
        expected = reference(base, [m[name] for m in models.tuned[:count]], filter_wise)
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-6)


def test_worked_example() -> None:
    """Two task vectors at 60 degrees: cos 1/2, t = 1 / 1.5, two thirds of the way to the mean."""
    base = np.array([1.0, 1.0])
    tuned = [base + np.array([2.0, 0.0]), base + np.array([1.0, np.sqrt(3)])]
    np.testing.assert_allclose(model_stock(base, tuned), base + np.array([1.0, np.sqrt(3) / 3]), rtol=1e-12)


def test_equal_models_stay_and_orthogonal_ones_fall_back() -> None:
    base = np.zeros(3)
    one = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(model_stock(base, [one, one.copy()]), one, rtol=1e-12)
    found = model_stock(base, [np.array([1.0, 0, 0]), np.array([0, 1.0, 0])])
    np.testing.assert_array_equal(found, base)
    np.testing.assert_array_equal(model_stock(base, [one, -one]), base)  # no finite t: the base stays


def test_two_models_are_needed() -> None:
    with pytest.raises(UsageError, match="at least two"):
        model_stock(np.zeros(2), [np.zeros(2)])
