"""SLERP against Shoemake's formula in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nett.core.errors import UsageError
from nett.merge import slerp
from support.cli import nett
from support.merging import STORED, Model, assert_same, family, tensor_by_tensor
from support.tensors import Array


def reference(base: Model, other: Model, t: float) -> Model:
    """sin((1-t) theta)/sin(theta) a + sin(t theta)/sin(theta) b, a straight line where nearly parallel."""

    def merge(ground: Array, models: list[Array]) -> Array:
        a, b = ground.astype(np.float64), models[0].astype(np.float64)
        cosine = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
        if abs(cosine) > 0.9995:
            return ((1 - t) * a + t * b).astype(np.float32)
        theta = math.acos(cosine)
        return ((math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)).astype(np.float32)

    return tensor_by_tensor(merge, base, [other])


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_float32_within_its_rounding(tmp_path: Path, t: float) -> None:
    """Far models (an arc) and near ones (a line): the two sides of the formula."""
    models = family(tmp_path)
    far = {n: np.roll(a, 3, axis=0) for n, a in models.tuned[0].items()}
    from support.tensors import write_tensors

    write_tensors(Path(models.paths[1]) / "model.safetensors", far)
    for index, other in ((0, models.tuned[0]), (1, far)):
        found = models.merge("slerp", "--t", str(t), models=[index])
        for name, values in reference(models.base, other, t).items():
            np.testing.assert_allclose(found[name], values, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("stored", STORED)
def test_every_element_type(tmp_path: Path, stored: str) -> None:
    """On the dyadic grid the dot products are exact, so the rounded results are the same bits."""
    models = family(tmp_path, stored, grid=True)
    found = models.merge("slerp", "--t", "0.5", models=[0])
    assert_same(found, models.as_stored(reference(models.base, models.tuned[0], 0.5)))


def test_worked_example() -> None:
    """Halfway along a quarter of a circle, and a third along one."""
    a, b = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
    np.testing.assert_allclose(slerp(a, [b], t=0.5), [math.sqrt(0.5), math.sqrt(0.5)], rtol=1e-7)
    np.testing.assert_allclose(slerp(a, [b], t=1 / 3), [math.cos(math.pi / 6), 0.5], rtol=1e-7)
    np.testing.assert_array_equal(slerp(a, [a], t=0.3), a)
    np.testing.assert_array_equal(slerp(a, [-a], t=0.5), [0, 0])  # opposite: no arc is the shortest, so a line
    zero = np.zeros(2, np.float32)
    np.testing.assert_allclose(slerp(zero, [b], t=0.5), math.sin(math.pi / 4) * b, rtol=1e-7)


def test_shape_does_not_matter_but_the_tensor_does() -> None:
    """The angle is that of the whole tensor, flattened: not of its rows."""
    a, b = np.eye(2, dtype=np.float32), np.array([[0, 1], [1, 0]], np.float32)
    np.testing.assert_allclose(slerp(a, [b], t=0.5), np.full((2, 2), math.sqrt(0.5)), rtol=1e-7)


def test_takes_two_models(tmp_path: Path) -> None:
    models = family(tmp_path)
    out = str(tmp_path / "o")
    nett("merge", "slerp", *models.paths, "--base", models.base_path, "--out", out).failed(
        2, "merge/slerp", "3 were given"
    )
    nett("merge", "slerp", models.paths[0], "--out", out).failed(2, "--base MODEL")
    with pytest.raises(UsageError, match="one model, but 2 were given"):
        slerp(np.zeros(2), [np.zeros(2), np.zeros(2)])


_vector = hnp.arrays(np.float64, 8, elements=st.floats(-4, 4).filter(lambda x: x == 0 or abs(x) > 1e-3))


@given(_vector, _vector, st.floats(0, 1))
def test_equal_norms_stay(a: Array, b: Array, t: float) -> None:
    """Between vectors of one length the arc keeps that length, and t and 1 - t are the same seen from both ends."""
    if np.linalg.norm(a) < 0.1 or np.linalg.norm(b) < 0.1:
        return
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    merged = slerp(a, [b], t=t)
    if abs(float(a @ b)) < 0.9995:
        assert np.linalg.norm(merged) == pytest.approx(1, abs=1e-9)
        np.testing.assert_allclose(merged, slerp(b, [a], t=1 - t), atol=1e-9)
