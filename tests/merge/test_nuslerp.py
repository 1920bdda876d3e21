"""NuSLERP against Shoemake's formula in float64: of tensors, of rows and of columns."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from nett.core.errors import UsageError
from nett.merge import nuslerp
from support.merging import family
from support.tensors import Array


def slerp(a: Array, b: Array, t: float) -> Array:
    cosine = float(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))
    theta = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(theta) < 1e-8:
        return (1 - t) * a + t * b
    return (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)


def reference(base: Array | None, tuned: list[Array], t: float, along: int | None) -> Array:
    """``along``: the axis of the vectors, None for the tensor as one vector."""
    ground = np.zeros(tuned[0].shape) if base is None else base.astype(np.float64)
    a, b = (m.astype(np.float64) - ground for m in tuned)
    if along is None or a.ndim == 1:
        return ground + slerp(a.ravel(), b.ravel(), t).reshape(a.shape)
    a, b = np.moveaxis(a, along, -1), np.moveaxis(b, along, -1)
    found = np.stack([slerp(x, y, t) for x, y in zip(a, b, strict=True)])
    return ground + np.moveaxis(found, -1, along)


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize(
    "words,along", [([], None), (["--no-flatten"], 1), (["--no-flatten", "--row-wise"], 0)], ids=["all", "rows", "cols"]
)
def test_command_line_is_the_formula(tmp_path: Path, base: bool, words: list[str], along: int | None) -> None:
    models = family(tmp_path)
    found = models.merge("nuslerp", *words, "--weight", "0.5,1.5", models=[0, 1], base=base)
    for name, ground in models.base.items():
        expected = reference(ground if base else None, [m[name] for m in models.tuned[:2]], 0.75, along)
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=2e-7)


def test_worked_example() -> None:
    """Equal weights meet in the middle of a quarter circle; from a base, of the task vectors'."""
    a, b = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    half = math.sqrt(0.5)
    np.testing.assert_allclose(nuslerp(None, [a, b]), [half, half], rtol=1e-12)
    base = np.array([2.0, 2.0])
    np.testing.assert_allclose(nuslerp(base, [base + a, base + b]), base + half, rtol=1e-12)
    np.testing.assert_array_equal(nuslerp(None, [a, b], weight=[1.0, -1.0]), nuslerp(None, [a, b]))


def test_two_models() -> None:
    with pytest.raises(UsageError, match="but 3 were given"):
        nuslerp(None, [np.zeros(2)] * 3)
