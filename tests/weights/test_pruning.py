"""Magnitude and Wanda: which weights go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nett
from nett.core.errors import Refused, UsageError
from nett.weights.masks import kept


def matrix(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(6, 40)).astype(np.float32))


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 1), st.integers(0, 9))
def test_exactly_so_many_go(sparsity: float, seed: int) -> None:
    weight = matrix(seed)
    squares = torch.rand(40, generator=torch.Generator().manual_seed(seed))
    rows = nett.weights.wanda(weight, squares, sparsity=sparsity)
    assert (np.count_nonzero(rows.numpy() == 0, axis=1) == round(sparsity * 40)).all()
    whole = nett.weights.magnitude(weight, sparsity=sparsity)
    assert np.count_nonzero(whole.numpy() == 0) == round(sparsity * 240)
    left = np.abs(weight.numpy()[whole.numpy() != 0])
    gone = np.abs(weight.numpy()[whole.numpy() == 0])
    assert not left.size or not gone.size or gone.max() <= left.min()


def test_wanda_is_the_formula() -> None:
    weight, squares = matrix(), torch.linspace(0, 4, 40)
    scores = np.abs(weight.numpy()) * np.sqrt(squares.numpy())
    expected = weight.numpy().copy()
    for row, score in zip(expected, scores, strict=True):
        row[np.argsort(score, kind="stable")[:20]] = 0
    assert np.array_equal(nett.weights.wanda(weight, squares).numpy(), expected)


@pytest.mark.parametrize(("pattern", "stay", "of"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4), ("4:4", 4, 4)])
def test_n_of_m(pattern: str, stay: int, of: int) -> None:
    for pruned in (
        nett.weights.magnitude(matrix(), pattern=pattern),
        nett.weights.wanda(matrix(), torch.ones(40), pattern=pattern),
    ):
        groups = pruned.numpy().reshape(-1, of)
        assert (np.count_nonzero(groups, axis=1) == stay).all()
        sizes = np.sort(np.abs(matrix().numpy().reshape(-1, of)), axis=1)[:, -stay:]
        assert np.allclose(np.sort(np.abs(groups), axis=1)[:, -stay:], sizes)


def test_of_equal_scores_the_first_go() -> None:
    assert kept(torch.ones(1, 6), 0.5, "unstructured").tolist() == [[False] * 3 + [True] * 3]


def test_bad_patterns() -> None:
    for bad in ("5:4", "0:4", "half", "2:"):
        with pytest.raises(UsageError, match="N:M"):
            nett.weights.magnitude(matrix(), pattern=bad)
    with pytest.raises(Refused, match="groups of 16"):
        nett.weights.magnitude(matrix(), pattern="2:16")
