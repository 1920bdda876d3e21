"""DELLA without election: kept entries add up with their weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nett.merge import della_linear
from support.merging import assert_same, family, tensor_by_tensor
from support.tensors import Array


def test_all_kept_is_task_arithmetic(tmp_path: Path) -> None:
    models = family(tmp_path, grid=True)

    def merge(ground: Array, tuned: list[Array]) -> Array:
        total = sum((t - ground) * np.float32(w) for t, w in zip(tuned, (0.5, 1.0, 0.25), strict=True))
        return ground + total * np.float32(0.5)

    found = models.merge("della_linear", "--density", "1", "--weight", "0.5,1,0.25", "--scale", "0.5")
    assert_same(found, models.as_stored(tensor_by_tensor(merge, models.base, models.tuned)))


def test_expected_value_is_the_task_vector() -> None:
    """Over many rows the rescaled rest adds up to what there was; with l1 it does so in each tensor, exactly."""
    rng = np.random.default_rng(5)
    tau = np.abs(rng.normal(size=(4000, 16))).astype(np.float32)
    base = np.zeros_like(tau)
    found = della_linear(base, [tau], density=0.6, epsilon=0.1)
    assert abs(float(found.sum(dtype=np.float64) / tau.sum(dtype=np.float64)) - 1) < 0.01
    found = della_linear(base, [tau], density=0.6, epsilon=0.1, rescale="l1")
    np.testing.assert_allclose(found.sum(dtype=np.float64), tau.sum(dtype=np.float64), rtol=1e-5)
    assert 0.55 < np.count_nonzero(found) / tau.size < 0.65
