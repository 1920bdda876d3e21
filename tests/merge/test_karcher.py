"""Karcher mean against a minimiser of the sum of squared angles, and against the iteration on whole vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from nett.merge import karcher
from support.merging import family
from support.tensors import Array


def iteration(points: list[Array], steps: int, tol: float) -> Array:
    """The fixed-point iteration on the vectors themselves, in float64."""
    x = np.array([p.ravel() for p in points], np.float64)
    norms = np.linalg.norm(x, axis=1)
    units = x / norms[:, None]
    mean = units.mean(axis=0)
    mean /= np.linalg.norm(mean)
    for _ in range(steps):
        cosines = np.clip(units @ mean, -1, 1)
        angles = np.arccos(cosines)
        factors = np.where(angles < tol, 0, angles / np.where(angles < tol, 1, np.sin(angles)))
        step = (factors[:, None] * (units - cosines[:, None] * mean)).mean(axis=0)
        length = np.linalg.norm(step)
        if length < tol:
            break
        mean = np.cos(length) * mean + np.sin(length) * step / length
        mean /= np.linalg.norm(mean)
    return (mean * norms.mean()).reshape(points[0].shape)


def test_command_line_is_the_iteration(tmp_path: Path) -> None:
    """Rolled models are far apart, so that the iteration has something to do."""
    from support.tensors import write_tensors

    models = family(tmp_path)
    far = {n: np.roll(a, 3, axis=0) for n, a in models.tuned[1].items()}
    write_tensors(Path(models.paths[1]) / "model.safetensors", far)
    found = models.merge("karcher", "--max-iter", "7", "--tol", "1e-12", base=False)
    for name in models.base:
        points = [models.tuned[0][name], far[name], models.tuned[2][name]]
        np.testing.assert_allclose(found[name], iteration(points, 7, 1e-12), rtol=1e-6, atol=2e-7)


def test_it_is_the_least_sum_of_squared_angles() -> None:
    rng = np.random.default_rng(2)
    points = [rng.normal(size=3) + 1 for _ in range(4)]
    units = np.array([p / np.linalg.norm(p) for p in points])

    def cost(v: Array) -> float:
        return float((np.arccos(np.clip(units @ (v / np.linalg.norm(v)), -1, 1)) ** 2).sum())

    found = karcher(points, max_iter=100, tol=1e-12)
    best = minimize(cost, units.mean(axis=0), tol=1e-12).x
    assert cost(found) <= cost(best) * (1 + 1e-9)
    assert np.isclose(np.linalg.norm(found), np.mean([np.linalg.norm(p) for p in points]), rtol=1e-12)


def test_zero_tensors() -> None:
    """They have no direction; their length counts, as zero."""
    a = np.array([0.0, 2.0])
    np.testing.assert_allclose(karcher([a, np.zeros(2)]), [0, 1], rtol=1e-12)
    np.testing.assert_array_equal(karcher([np.zeros(2), np.zeros(2)]), [0, 0])
