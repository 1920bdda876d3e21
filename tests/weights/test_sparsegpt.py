"""SparseGPT against the formula written out in NumPy in float64, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nett
from support.tensors import Array


def given(rows: int = 6, columns: int = 32, seed: int = 0) -> tuple[Array, Array]:
    """Weights and the second moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(300, columns)) @ rng.normal(size=(columns, columns))
    weight = rng.normal(size=(rows, columns)).astype(np.float32).astype(np.float64)
    return weight, (inputs.T @ inputs / len(inputs)).astype(np.float32).astype(np.float64)


def by_hand(weight: Array, gram: Array, sparsity: float, damping: float, of: tuple[int, int] | None) -> Array:
    """Columns one by one; what was seen is eliminated from the inverse (Gaussian), as in the paper's derivation.
    Masks of N:M are chosen when their first column is reached, an unstructured one (of few columns) at the start."""
    columns = weight.shape[1]
    inverse = np.linalg.inv(gram + damping * np.mean(np.diag(gram)) * np.eye(columns))
    pivots, reduced = np.zeros(columns), inverse.copy()
    for j in range(columns):
        pivots[j] = reduced[j, j]
        reduced = reduced - np.outer(reduced[:, j], reduced[j]) / reduced[j, j]
    left, out, stays = weight.copy(), np.zeros_like(weight), np.ones(weight.shape, bool)
    for j in range(columns):
        if of is None and j == 0:
            score = (left**2 / pivots).ravel()
            stays.reshape(-1)[np.argsort(score, kind="stable")[: round(sparsity * score.size)]] = False
        elif of is not None and j % of[1] == 0:
            score = left[:, j : j + of[1]] ** 2 / pivots[j : j + of[1]]
            gone = np.argsort(score, axis=1, kind="stable")[:, : of[1] - of[0]]
            np.put_along_axis(stays[:, j : j + of[1]], gone, False, axis=1)
        out[:, j] = left[:, j] * stays[:, j]
        error = (left[:, j] - out[:, j]) / inverse[j, j]
        left[:, j + 1 :] -= np.outer(error, inverse[j, j + 1 :])
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return out


@pytest.mark.parametrize(("pattern", "of"), [("unstructured", None), ("2:4", (2, 4)), ("4:8", (4, 8))])
def test_equals_the_formula(pattern: str, of: tuple[int, int] | None) -> None:
    weight, gram = given()
    found = nett.weights.sparsegpt(torch.from_numpy(weight.astype(np.float32)), torch.from_numpy(gram.astype(np.float32)), pattern=pattern)  # fmt: skip
    assert np.allclose(found.numpy(), by_hand(weight, gram, 0.5, 0.01, of), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_less_error_than_wanda_over_several_blocks_of_columns(pattern: str) -> None:
    weight, gram = given(20, 300, seed=2)
    w, g = torch.from_numpy(weight.astype(np.float32)), torch.from_numpy(gram.astype(np.float32))
    mine, wanda = nett.weights.sparsegpt(w, g, pattern=pattern), nett.weights.wanda(w, g.diagonal(), pattern=pattern)

    def error(value: torch.Tensor) -> float:
        gap = (value - w).double().numpy()
        return float(((gap @ gram) * gap).sum())

    assert error(mine) < 0.7 * error(wanda)
    if pattern == "2:4":
        assert (np.count_nonzero(mine.numpy().reshape(-1, 4), axis=1) == 2).all()
    assert np.count_nonzero(mine.numpy() == 0) == weight.size / 2


def test_what_never_has_an_input_goes_first() -> None:
    weight, gram = given()
    gram[[3, 9]] = gram[:, [3, 9]] = 0
    w, g = torch.from_numpy(weight.astype(np.float32) * 1e3), torch.from_numpy(gram.astype(np.float32))
    assert bool((nett.weights.sparsegpt(w, g, sparsity=2 / 32)[:, [3, 9]] == 0).all())
    assert torch.equal(nett.weights.sparsegpt(w, g, sparsity=0.0), w)
