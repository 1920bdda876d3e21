"""DARE with task arithmetic: the drawn masks, the rescaling, and the formula with those masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.merge import dare_linear, task_arithmetic
from support.dare import VARIANTS, dropped, masks_of
from support.merging import STORED, Family, Model, assert_same, family
from support.tensors import Array


def reference(models: Family, masks: list[Model], options: dict[str, Any]) -> Model:
    """base + scale * sum_i w_i m_i (x_i - base) / density, in float32, in order."""
    density = options.get("density", [0.5] * 3)
    weights = [np.float32(w) for w in options.get("weight", [1.0] * 3)]
    made = {}
    for name, base in models.base.items():
        taus = [m[name] - base for m in models.tuned]
        kept = dropped(taus, [m[name] for m in masks], density, options.get("rescale", "inverse-density"))
        total: Array = np.asarray(sum(w * k for w, k in zip(weights, kept, strict=True)))
        if options.get("normalize"):
            total = total / np.float32(sum(weights))
        made[name] = base + np.float32(options.get("scale", 1.0)) * total
    return made


def words(options: dict[str, Any]) -> list[str]:
    found = []
    for name, value in options.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        found += ["--normalize"] if value is True else [f"--{name}", text]
    return found


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_command_line_is_the_formula(tmp_path: Path, options: dict[str, Any]) -> None:
    models = family(tmp_path / "f")
    masks = masks_of(models, "dare_linear", tmp_path, options.get("density", [0.5] * 3), options.get("seed", 0))
    found = models.merge("dare_linear", *words(options))
    expected = reference(models, masks, options)
    if options.get("rescale") == "l1":  # a ratio of two sums: their order of addition shows in the last place
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=2.5e-7, atol=1e-7)
    else:
        assert_same(found, expected)


@pytest.mark.parametrize("stored", STORED)
def test_every_element_type(tmp_path: Path, stored: str) -> None:
    models = family(tmp_path / "f", stored)
    masks = masks_of(models, "dare_linear", tmp_path, [0.5] * 3)
    assert_same(models.merge("dare_linear"), models.as_stored(reference(models, masks, {})))


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.9])
def test_masks_are_bernoulli(density: float) -> None:
    """The rate is that asked for, within five standard deviations; neighbours, models and seeds are independent."""
    size = 400_000
    zero, one = np.zeros(size, np.float32), np.ones(size, np.float32)
    first = dare_linear(zero, [one, zero], density=density, rescale="none")
    second = dare_linear(zero, [zero, one], density=density, rescale="none")
    other = dare_linear(zero, [one, zero], density=density, rescale="none", seed=1)
    sigma = (density * (1 - density) / size) ** 0.5
    for drawn in (first, second, other):
        assert abs(drawn.mean() - density) < 5 * sigma
    pairs = [(first[:-1], first[1:]), (first[:-8], first[8:]), (first, second), (first, other)]
    for a, b in pairs:
        covariance = np.mean(a * b) - density**2
        assert abs(covariance) < 6 * density / size**0.5


def test_unbiased_over_many_seeds() -> None:
    """The mean over seeds comes to task arithmetic, at the rate of a mean."""
    rng = np.random.default_rng(1)
    base = rng.normal(size=300).astype(np.float32)
    tuned = [base + rng.normal(size=300).astype(np.float32) for _ in range(2)]
    full = task_arithmetic(base, tuned)
    seeds, density = 500, 0.3
    mean = np.mean([dare_linear(base, tuned, density=density, seed=s) for s in range(seeds)], axis=0, dtype=np.float64)
    spread = np.sqrt((1 / density - 1) / seeds * sum((t - base) ** 2 for t in tuned))
    assert np.all(np.abs(mean - full) < 5 * spread + 1e-6)
    assert np.mean(np.abs(mean - full) < spread) == pytest.approx(0.68, abs=0.12)


def test_l1_rescale_keeps_the_norm() -> None:
    """Tensor by tensor, the L1 norm of each task vector is what it was."""
    rng = np.random.default_rng(2)
    base, tau = np.zeros(1000, np.float32), rng.normal(size=1000).astype(np.float32)
    merged = dare_linear(base, [tau], density=0.2, rescale="l1")
    assert np.abs(merged).sum(dtype=np.float64) == pytest.approx(np.abs(tau).sum(dtype=np.float64), rel=1e-6)
    kept = merged != 0
    ratio = merged[kept] / tau[kept]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    np.testing.assert_array_equal(dare_linear(base, [base], density=0.2, rescale="l1"), base)  # nothing to rescale


def test_worked_example() -> None:
    """Kept entries are doubled at density one half, the others are the base's; the mask is the one drawn for ones."""
    base = np.array([1, 1, 1, 1, 1, 1, 1, 1], np.float32)
    tuned = base + np.arange(1, 9, dtype=np.float32)
    mask = dare_linear(np.zeros(8, np.float32), [np.ones(8, np.float32)], density=0.5, rescale="none")
    assert 0 < mask.sum() < 8
    np.testing.assert_array_equal(dare_linear(base, [tuned], density=0.5), 1 + mask * 2 * np.arange(1, 9))
    np.testing.assert_array_equal(dare_linear(base, [tuned], density=1.0), tuned)
    np.testing.assert_array_equal(dare_linear(base, [tuned], density=0.0), base)


def test_masks_differ_from_tensor_to_tensor(tmp_path: Path) -> None:
    models = family(tmp_path / "f")
    masks = masks_of(models, "dare_linear", tmp_path, [0.5] * 3)
    for mask in masks:
        assert np.any(mask["layers.0.w"] != mask["layers.1.w"])
    assert np.any(masks[0]["layers.0.w"] != masks[1]["layers.0.w"])
