"""Multi-SLERP against its steps written out: tangent space at the mean direction, average there, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nett.core.errors import UsageError
from nett.merge import multislerp
from support.merging import family
from support.tensors import Array


def reference(points: list[Array], weights: list[float]) -> Array:
    """Goddard's four steps in float64, none of them left out."""
    x = np.array([p.ravel() for p in points], np.float64)
    w = np.array(weights)[:, None]
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    units = x / norms
    mean = (units * w).sum(axis=0)
    mean /= np.linalg.norm(mean)
    tangents = units - (units @ mean)[:, None] * mean
    step = (tangents * w).sum(axis=0)
    length = np.linalg.norm(step)
    back = mean * np.cos(length) + (step * np.sin(length) / length if length > 1e-12 else 0)
    return (back * (norms * w).sum()).reshape(points[0].shape)


@pytest.mark.parametrize("base", [False, True])
def test_command_line_is_the_steps(tmp_path: Path, base: bool) -> None:
    models = family(tmp_path)
    found = models.merge("multislerp", "--weight", "0.5,1,2.5", base=base)
    for name, ground in models.base.items():
        start = ground.astype(np.float64) if base else np.zeros(ground.shape)
        points = [m[name] - start for m in models.tuned]
        expected = start + reference(points, [0.125, 0.25, 0.625])
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=2e-7)


def test_worked_example() -> None:
    """Lengths 2 and 4 at a right angle: halfway between the directions, at length 3."""
    found = multislerp(None, [np.array([2.0, 0.0]), np.array([0.0, 4.0])])
    np.testing.assert_allclose(found, [3 * np.sqrt(0.5)] * 2, rtol=1e-7)


def test_directions_that_cancel() -> None:
    """Two opposite points fall back to the straight line; three that cancel are refused."""
    a = np.array([1.0, 0.0])
    np.testing.assert_allclose(multislerp(None, [a, -a]), [0, 0], atol=1e-12)
    ring = [np.array([np.cos(x), np.sin(x)]) for x in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
    with pytest.raises(UsageError, match="cancel"):
        multislerp(None, ring)
    with pytest.raises(UsageError, match="add up to zero"):
        multislerp(None, [a, a], weight=[1.0, -1.0])


def test_zero_tensors_stay_zero() -> None:
    np.testing.assert_array_equal(multislerp(None, [np.zeros(3)] * 3), np.zeros(3))
