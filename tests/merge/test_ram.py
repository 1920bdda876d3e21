"""Reinforced Agent Merging against its definition, entry by entry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nett.merge import ram
from support.merging import family
from support.tensors import Array


def reference(base: Array, tuned: list[Array], epsilon: float, factors: list[float]) -> Array:
    ground = base.astype(np.float64).ravel()
    out = ground.copy()
    for k in range(ground.size):
        changes = [(i, m.ravel()[k] - base.ravel()[k]) for i, m in enumerate(tuned)]
        changes = [(i, d) for i, d in changes if abs(d) > epsilon]
        if len(changes) == 1:
            out[k] += changes[0][1] * factors[changes[0][0]]
        elif changes:
            out[k] += float(np.mean([d for _, d in changes]))
    return out.reshape(base.shape)


@pytest.mark.parametrize("epsilon", [0.0, 0.015, 0.03])
def test_command_line_is_the_definition(tmp_path: Path, epsilon: float) -> None:
    models = family(tmp_path)
    found = models.merge("ram", "--epsilon", str(epsilon))
    for name, base in models.base.items():
        expected = reference(base, [m[name] for m in models.tuned], epsilon, [1.0] * 3)
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=2e-7)


def test_worked_example() -> None:
    base = np.zeros(3)
    found = ram(base, [np.array([4.0, 0, 2]), np.array([0, 1e-9, 4])], epsilon=1e-5)
    np.testing.assert_array_equal(found, [4, 0, 3])
