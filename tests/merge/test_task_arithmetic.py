"""Task arithmetic against its formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nett.merge import task_arithmetic
from support.merging import STORED, Model, assert_same, family, tensor_by_tensor
from support.tensors import Array


def reference(
    base: Model, tuned: list[Model], weights: list[float], scale: float = 1.0, normalize: bool = False
) -> Model:
    """base + scale * sum_i w_i (x_i - base), in float32, in order."""

    def merge(ground: Array, models: list[Array]) -> Array:
        total = sum(np.float32(w) * (m - ground) for w, m in zip(weights, models, strict=True))
        if normalize:
            total = total / np.float32(sum(weights))
        return np.asarray(ground + np.float32(scale) * total)

    return tensor_by_tensor(merge, base, tuned)


@pytest.mark.parametrize("stored", STORED)
def test_sum_of_task_vectors_of_every_element_type(tmp_path: Path, stored: str) -> None:
    models = family(tmp_path, stored)
    found = models.merge("task_arithmetic", "--scale", "0.4")
    assert_same(found, models.as_stored(reference(models.base, models.tuned, [1.0] * 3, 0.4)))


@pytest.mark.parametrize("normalize", [True, False])
def test_weights(tmp_path: Path, normalize: bool) -> None:
    models = family(tmp_path)
    words = ["--weight", "0.5,1,-0.25", *(["--normalize"] if normalize else [])]
    found = models.merge("task-arithmetic", *words)
    assert_same(found, reference(models.base, models.tuned, [0.5, 1.0, -0.25], 1.0, normalize))


def test_worked_example() -> None:
    base = np.array([1.0, 1.0, 1.0], np.float32)
    tuned = [np.array([2.0, 1.0, 0.0], np.float32), np.array([2.0, 4.0, 1.5], np.float32)]
    # task vectors (1, 0, -1) and (1, 3, 0.5)
    np.testing.assert_array_equal(task_arithmetic(base, tuned), [3, 4, 0.5])
    np.testing.assert_array_equal(task_arithmetic(base, tuned, scale=0.5), [2, 2.5, 0.75])
    np.testing.assert_array_equal(task_arithmetic(base, tuned, weight=[2, -1]), [2, -2, -1.5])
    np.testing.assert_array_equal(task_arithmetic(base, tuned, normalize=True), [2, 2.5, 0.75])


def test_negated_task_vector_takes_a_task_away() -> None:
    """base - (x - base): the paper's forgetting."""
    base, tuned = np.array([1.0, 2.0], np.float32), np.array([1.5, 2.0], np.float32)
    np.testing.assert_array_equal(task_arithmetic(base, [tuned], scale=-1.0), [0.5, 2.0])


@given(hnp.arrays(np.float32, (3, 11), elements=st.integers(-64, 64).map(lambda n: n / 16)))
def test_scale_0_is_the_base_and_one_model_itself(models: Array) -> None:
    base, *tuned = models
    np.testing.assert_array_equal(task_arithmetic(base, tuned, scale=0.0), base)
    np.testing.assert_array_equal(task_arithmetic(base, [tuned[0]]), tuned[0])
