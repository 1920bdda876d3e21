"""Model Breadcrumbs against both tails cut off by a sort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.merge import breadcrumbs
from support.merging import Model, assert_same, family, tensor_by_tensor
from support.tensors import Array


def without_tails(tau: Array, density: float, gamma: float) -> Array:
    """Of the ascending |entries|, those from max(0, d - kept - int(gamma d)) on, kept = int(density d), and equals."""
    if density >= 1:
        return tau
    kept = max(1, int(density * tau.size))
    below = max(0, tau.size - kept - int(gamma * tau.size))
    ordered = np.sort(np.abs(tau))
    inside = (np.abs(tau) >= ordered[below]) & (np.abs(tau) <= ordered[below + kept - 1])
    return np.where(inside, tau, tau.dtype.type(0)) if density > 0 else np.zeros_like(tau)


def rescaled(before: Array, after: Array) -> Array:
    """``after`` with the L1 norm of ``before``."""
    now = np.abs(after).sum(dtype=np.float64)
    return after * np.float32(np.abs(before).sum(dtype=np.float64) / now) if now else after


def reference(base: Model, tuned: list[Model], **given: Any) -> Model:
    o = {"density": 0.9, "gamma": 0.01, "weight": 1.0, "scale": 1.0, "rescale": False, "normalize": False} | given
    weights = o["weight"] if isinstance(o["weight"], list) else [o["weight"]] * len(tuned)

    def merge(ground: Array, models: list[Array]) -> Array:
        total = np.zeros_like(ground)
        for model, weight in zip(models, weights, strict=True):
            tau = model - ground
            kept = without_tails(tau, o["density"], o["gamma"])
            total += (rescaled(tau, kept) if o["rescale"] else kept) * np.float32(weight)
        if o["normalize"]:
            total /= np.float32(sum(weights))
        return ground + total * np.float32(o["scale"])

    return tensor_by_tensor(merge, base, tuned)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"density": 0.5, "gamma": 0.2},
        {"density": 0.95, "gamma": 0.3},
        {"density": 0.0},
        {"density": 1.0, "scale": 0.4},
        {"density": 0.6, "weight": [0.2, 0.5, 1.0], "normalize": True},
        {"density": 0.3, "gamma": 0.1, "rescale": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("grid", [False, True], ids=["noise", "ties"])
def test_command_line_is_the_formula(tmp_path: Path, options: dict[str, Any], grid: bool) -> None:
    models = family(tmp_path, grid=grid)
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{name}")
        else:
            words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    found = models.merge("breadcrumbs", *words)
    expected = reference(models.base, models.tuned, **options)
    if options.get("rescale"):
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-7)
    else:
        assert_same(found, models.as_stored(expected))


def test_worked_example() -> None:
    """Ten entries, density 0.6, gamma 0.2: the two largest and the two smallest go."""
    tau = np.array([1, -2, 3, -4, 5, -6, 7, -8, 9, -10], np.float32)
    found = breadcrumbs(np.zeros(10, np.float32), [tau], density=0.6, gamma=0.2)
    np.testing.assert_array_equal(found, [0, 0, 3, -4, 5, -6, 7, -8, 0, 0])


def test_fewer_outliers_go_where_the_density_asks_for_it() -> None:
    """density 0.9 of ten with gamma 0.2: one of the largest goes, not two, and none of the smallest."""
    tau = np.arange(1, 11, dtype=np.float32)
    found = breadcrumbs(np.zeros(10, np.float32), [tau], density=0.9, gamma=0.2)
    np.testing.assert_array_equal(found, [*range(1, 10), 0])
