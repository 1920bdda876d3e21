"""SCE against FuseChat's three steps by sorting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nett.merge import sce
from support.merging import family
from support.tensors import Array


def reference(base: Array, tuned: list[Array], top: float) -> Array:
    ground = base.astype(np.float64).ravel()
    d = np.array([m.astype(np.float64).ravel() - ground for m in tuned])
    if top < 1:
        variance = d.var(axis=0)
        kept = int(np.count_nonzero(variance) * top)
        chosen = np.argsort(-variance, kind="stable")[:kept]
        mask = np.zeros(d.shape[1])
        mask[chosen] = 1
        d = d * mask
    weights = (d**2).sum(axis=1)
    weights = weights / weights.sum() if weights.sum() else np.full(len(d), 1 / len(d))
    sign = np.where(d.sum(axis=0) >= 0, 1, -1)
    shares = weights[:, None] * (np.sign(d) == sign)
    divisor = shares.sum(axis=0)
    merged = np.divide((shares * d).sum(axis=0), divisor, out=np.zeros(d.shape[1]), where=divisor > 0)
    return (ground + merged).reshape(base.shape)


@pytest.mark.parametrize("top", [0.0, 0.1, 0.6, 1.0])
def test_command_line_is_the_formula(tmp_path: Path, top: float) -> None:
    models = family(tmp_path)
    found = models.merge("sce", "--select-topk", str(top))
    for name, base in models.base.items():
        expected = reference(base, [m[name] for m in models.tuned], top)
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=2e-7)


def test_worked_example() -> None:
    """Task vectors (3, 0, 1) and (-1, 0, 1): squares 10 and 2; the minority's -1 is erased."""
    base = np.zeros(3)
    found = sce(base, [np.array([3.0, 0, 1]), np.array([-1.0, 0, 1])], select_topk=1.0)
    np.testing.assert_allclose(found, [3, 0, 1], rtol=1e-12)
    found = sce(base, [np.array([3.0, 0, 1]), np.array([1.0, 0, 1])], select_topk=1.0)
    np.testing.assert_allclose(found, [(10 * 3 + 2 * 1) / 12, 0, 1], rtol=1e-12)


def test_selection_drops_what_all_agree_on() -> None:
    base = np.zeros(3)
    found = sce(base, [np.array([3.0, 5, 1]), np.array([1.0, 5, 2])], select_topk=0.5)
    np.testing.assert_allclose(found, [2.8, 0, 0], rtol=1e-12)  # squares 9 and 1
