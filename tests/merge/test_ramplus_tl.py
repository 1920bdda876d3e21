"""RAM+ against its definition: what one model alone changed, times 1 + r * min(shared / own, alpha)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from merge.test_ram import reference
from nett.merge import ramplus_tl
from support.merging import family
from support.tensors import Array


def factors(base: Array, tuned: list[Array], epsilon: float, r: float, alpha: float) -> list[float]:
    changed = np.array([np.abs(m - base).ravel() > epsilon for m in tuned])
    alone = changed.sum(axis=0) == 1
    found = []
    for one in changed:
        own, shared = int((one & alone).sum()), int((one & ~alone).sum())
        found.append(1 + r * min(shared / own if own else np.inf if shared else 0.0, alpha))
    return found


@pytest.mark.parametrize("alpha", [0.2, 5.0])
def test_command_line_is_the_definition(tmp_path: Path, alpha: float) -> None:
    models = family(tmp_path)
    found = models.merge("ramplus_tl", "--epsilon", "0.03", "--r", "0.5", "--alpha", str(alpha))
    for name, base in models.base.items():
        tuned = [m[name] for m in models.tuned]
        expected = reference(base, tuned, 0.03, factors(base, tuned, 0.03, 0.5, alpha))
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=2e-7)


def test_worked_example() -> None:
    """One of the first model's two changes is shared: ratio 1, times r 0.5."""
    base = np.zeros(3)
    found = ramplus_tl(base, [np.array([4.0, 0, 2]), np.array([0.0, 0, 4])], r=0.5, alpha=2.0)
    np.testing.assert_array_equal(found, [6, 0, 3])
    found = ramplus_tl(base, [np.array([4.0, 0, 2]), np.array([0.0, 0, 4])], r=0.5, alpha=0.5)
    np.testing.assert_array_equal(found, [5, 0, 3])
