"""DELLA: the drop probabilities of its paper, and the election of P10 behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nett.core.errors import UsageError
from nett.merge import della
from nett.merge.ranked_dropping import rank_shares
from support.merging import assert_same, elect, family, tensor_by_tensor
from support.tensors import Array


def shares(tau: Array) -> Array:
    """Place of each |entry| in its row, 0 to 1, by one sort a row."""
    rows = np.abs(tau).reshape(len(tau), -1) if tau.ndim > 1 else np.abs(tau)[None, :]
    found = np.empty(rows.shape)
    for row, out in zip(rows, found, strict=True):
        for rank, place in enumerate(sorted(range(row.size), key=lambda i: (row[i], i))):
            out[place] = rank / max(1, row.size - 1)
    return found.ravel()


@pytest.mark.parametrize("shape", [(7,), (5, 9), (3, 2, 4), (4, 1)])
def test_ranks_are_within_rows(shape: tuple[int, ...]) -> None:
    tau = np.random.default_rng(1).integers(-4, 5, shape).astype(np.float32)
    found = np.concatenate([share for _, share in rank_shares(tau)])
    np.testing.assert_array_equal(found, shares(tau))


def test_entries_stay_as_often_as_their_rank_says() -> None:
    """20,000 rows of five: each place stays density - epsilon + 2 epsilon * rank of the time, and is rescaled by it."""
    rng = np.random.default_rng(3)
    tau = np.stack([rng.permutation([1.0, 2, 3, 4, 5]) for _ in range(20_000)]).astype(np.float32)
    found = della(np.zeros_like(tau), [tau], density=0.5, epsilon=0.2, normalize=False)
    for rank in range(5):
        probability = 0.3 + 0.1 * rank
        here = found[tau == rank + 1]
        kept = here != 0
        np.testing.assert_allclose(here[kept], (rank + 1) / probability, rtol=1e-6)
        assert abs(kept.mean() - probability) < 4 * np.sqrt(0.25 / here.size)
    assert abs(float(found.mean()) - 3) < 0.05  # what stays makes up for what went


def test_all_kept_is_the_election(tmp_path: Path) -> None:
    models = family(tmp_path, grid=True)

    def merge(ground: Array, tuned: list[Array]) -> Array:
        deltas = np.stack([t - ground for t in tuned])
        weights = [0.5, 1.0, 0.25]
        return ground + elect(deltas, weights, weight_in_election=True, zero_sign="positive", normalize=True)

    found = models.merge("della", "--density", "1", "--weight", "0.5,1,0.25")
    assert_same(found, models.as_stored(tensor_by_tensor(merge, models.base, models.tuned)))


def test_density_zero_is_the_base() -> None:
    base = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(della(base, [base + 1], density=0.0), base)


def test_probabilities_must_be_probabilities() -> None:
    with pytest.raises(UsageError, match=r"density 0\.9 with epsilon 0\.2"):
        della(np.zeros((2, 2)), [np.ones((2, 2))], density=0.9, epsilon=0.2)
