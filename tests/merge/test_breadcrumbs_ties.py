"""Model Breadcrumbs with TIES: both tails cut off by a sort, then the election of P10 in plain NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from merge.test_breadcrumbs import without_tails
from nett.merge import breadcrumbs_ties
from support.merging import assert_same, elect, family, tensor_by_tensor
from support.tensors import Array


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("in_election", [False, True])
def test_command_line_is_the_formula(tmp_path: Path, normalize: bool, in_election: bool) -> None:
    models = family(tmp_path, grid=True)
    weights = [0.5, 1.0, -0.25] if in_election else [0.5, 1.0, 0.25]

    def merge(ground: Array, tuned: list[Array]) -> Array:
        kept = np.stack([without_tails(t - ground, 0.7, 0.1) for t in tuned])
        merged = elect(kept, weights, weight_in_election=in_election, zero_sign="positive", normalize=normalize)
        return ground + merged * np.float32(0.5)

    found = models.merge(
        "breadcrumbs_ties", "--density", "0.7", "--gamma", "0.1", "--scale", "0.5",
        "--weight=" + ",".join(map(str, weights)),
        *([] if in_election else ["--no-weight-in-election"]), *(["--normalize"] if normalize else []),
    )  # fmt: skip
    assert_same(found, models.as_stored(tensor_by_tensor(merge, models.base, models.tuned)))


def test_worked_example() -> None:
    """The outlier of the first model is dropped, so the second decides that sign alone."""
    base = np.zeros(4, np.float32)
    tuned = [np.array([1, 2, -3, -9], np.float32), np.array([4, -1, -2, 3], np.float32)]
    found = breadcrumbs_ties(base, tuned, density=0.75, gamma=0.25)
    # kept: (1, 2, -3, 0) and (0, -1, -2, 3); sums 1, 1, -5, 3
    np.testing.assert_array_equal(found, [1, 2, -5, 3])
