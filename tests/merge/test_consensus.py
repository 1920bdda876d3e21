"""Consensus merging (P04, equation 6) against plain NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nett.merge import consensus, task_arithmetic
from support.merging import STORED, Model, assert_same, family, multi_task_vector, task_masks
from support.tensors import Array


def reference(base: Model, tuned: list[Model], **given: Any) -> Model:
    """base + scale * [number of tasks whose mask holds >= min_tasks] * tau_MT."""
    options = {"over": "task_arithmetic", "min_tasks": 2, "scale": 0.5, "mask_lambda": 0.4, "density": 0.2} | given
    lambdas = (
        options["mask_lambda"] if isinstance(options["mask_lambda"], list) else [options["mask_lambda"]] * len(tuned)
    )
    vector = multi_task_vector(base, tuned, options["over"], options["density"])
    masks = task_masks(base, tuned, vector, lambdas)
    made = {}
    for name, ground in base.items():
        users = sum(m[name].astype(int) for m in masks)
        made[name] = ground + ground.dtype.type(options["scale"]) * vector[name] * (users >= options["min_tasks"])
    return made


VARIANTS: list[dict[str, Any]] = [
    {},
    {"min_tasks": 0, "scale": 1.0},
    {"min_tasks": 1, "scale": 0.3},
    {"min_tasks": 3},
    {"min_tasks": 4},
    {"mask_lambda": [0.2, 0.6, 0.4], "min_tasks": 1},
    {"over": "ties", "density": 0.35},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("grid", [False, True], ids=["noise", "ties"])
def test_command_line_is_the_equation(tmp_path: Path, options: dict[str, Any], grid: bool) -> None:
    models = family(tmp_path, grid=grid)
    words = []
    for name, value in options.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    assert_same(models.merge("consensus", *words), reference(models.base, models.tuned, **options))


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("over", ["task_arithmetic", "ties"])
def test_every_element_type(tmp_path: Path, stored: str, over: str) -> None:
    """Masks are taken of the vector in float32, before anything is rounded."""
    models = family(tmp_path, stored)
    found = models.merge("consensus", "--over", over)
    assert_same(found, models.as_stored(reference(models.base, models.tuned, over=over)))


def test_the_issues_own_command(tmp_path: Path) -> None:
    models = family(tmp_path, "bf16")
    words = ["--over", "task_arithmetic", "--min-tasks", "2", "--scale", "0.5", "--mask-lambda", "0.4"]
    assert_same(models.merge("consensus", *words), models.as_stored(reference(models.base, models.tuned)))


def test_worked_example() -> None:
    """tau_1 = (4, 1, 3), tau_2 = (1, 1, -3), sum (5, 2, 0), lambda 0.5:

    task 1 uses 4 > 0.5, 1 > 0.5, 3 > 1.5; task 2 uses not 1 > 2, but 1 > 0.5, and 3 > 1.5.
    """
    base = np.ones(3, np.float32)
    tuned = [base + np.array([4, 1, 3], np.float32), base + np.array([1, 1, -3], np.float32)]
    np.testing.assert_array_equal(consensus(base, tuned, mask_lambda=0.5, min_tasks=2, scale=1.0), [1, 3, 1])
    np.testing.assert_array_equal(consensus(base, tuned, mask_lambda=0.5, min_tasks=1, scale=0.5), [3.5, 2, 1])
    np.testing.assert_array_equal(consensus(base, tuned, min_tasks=3), base)


_grid = hnp.arrays(np.float32, (5, 12), elements=st.integers(-32, 32).map(lambda n: n / 8))


@given(_grid, st.integers(0, 5))
def test_more_tasks_keep_less(models: Array, least: int) -> None:
    """min_tasks 0 is task arithmetic, more tasks keep a subset, more than there are give the base."""
    base, *tuned = models
    full = consensus(base, tuned, min_tasks=0, scale=1.0)
    np.testing.assert_array_equal(full, task_arithmetic(base, tuned))
    some, fewer = (consensus(base, tuned, min_tasks=n, scale=1.0) for n in (least, least + 1))
    assert np.all((some == full) | (some == base))
    assert not np.any((fewer != base) & (some == base))
    np.testing.assert_array_equal(consensus(base, tuned, min_tasks=5), base)
