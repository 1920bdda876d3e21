"""GPTQ against the formula written out in NumPy in float64, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nett
from nett.core.errors import NettError
from nett.weights.hessian import upper_inverse
from support.tensors import Array


def given(rows: int = 6, columns: int = 32, seed: int = 0) -> tuple[Array, Array]:
    """Weights and the second moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(300, columns)) @ rng.normal(size=(columns, columns))
    return rng.normal(size=(rows, columns)), inputs.T @ inputs / len(inputs)


def by_hand(weight: Array, gram: Array, bits: int, damping: float, order: str) -> Array:
    """One scale a row of the whole range; columns one by one, errors passed to all that are left."""
    columns = weight.shape[1]
    damped = gram + damping * np.mean(np.diag(gram)) * np.eye(columns)
    by = np.argsort(-np.diag(gram), kind="stable") if order == "activation" else np.arange(columns)
    inverse = np.linalg.inv(damped[np.ix_(by, by)])
    scale = np.abs(weight).max(1) / ((2**bits - 1) / 2)
    scale = scale.astype(np.float32).astype(np.float64)
    left, out = weight[:, by].copy(), np.zeros_like(weight)
    for j in range(columns):
        code = np.clip(np.round(left[:, j] / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        out[:, by[j]] = code * scale
        error = (left[:, j] - code * scale) / inverse[j, j]
        left[:, j + 1 :] -= np.outer(error, inverse[j, j + 1 :])
        # What is known now is taken out of the inverse (Gaussian elimination), as in the paper's derivation.
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return out


@pytest.mark.parametrize("order", ["activation", "given"])
@pytest.mark.parametrize("bits", [3, 4])
def test_equals_the_formula(order: str, bits: int) -> None:
    weight, gram = given()
    answer = nett.weights.gptq(
        torch.from_numpy(weight.astype(np.float32)),
        torch.from_numpy(gram.astype(np.float32)),
        bits=bits,
        group=-1,
        search=False,
        order=order,
    )
    expected = by_hand(weight.astype(np.float32).astype(np.float64), gram, bits, 0.01, order)
    found = answer.dense().numpy()
    same = np.isclose(found, expected, rtol=1e-5, atol=1e-6)
    assert same.mean() > 0.97, "a number on the edge of two may fall to the other side in float32, no more"


def error(weight: torch.Tensor, value: torch.Tensor, gram: torch.Tensor) -> float:
    gap = (weight - value).double()
    return float(((gap @ gram.double()) * gap).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [-1, 32, 64])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outputs_change_less_than_by_rounding(bits: int, group: int, symmetric: bool) -> None:
    weight, gram = (torch.from_numpy(a.astype(np.float32)) for a in given(24, 128, 1))
    how = {"bits": bits, "group": group, "symmetric": symmetric}
    learned = nett.weights.gptq(weight, gram, **how)
    rounded = nett.weights.rtn(weight, search=True, **how)
    assert error(weight, learned.dense(), gram) < error(weight, rounded.dense(), gram)
    assert int(learned.codes.min()) >= -(2 ** (bits - 1)) and int(learned.codes.max()) < 2 ** (bits - 1)


def test_numbers_on_the_grid_come_back() -> None:
    """A matrix of whole numbers of its own scale has no error to pass on."""
    codes = np.random.default_rng(2).integers(-8, 8, (8, 64))
    codes[:, :2] = -8, 7
    weight = torch.from_numpy((codes * 0.125).astype(np.float32))
    gram = torch.from_numpy(given(1, 64)[1].astype(np.float32))
    answer = nett.weights.gptq(weight, gram, bits=4, group=-1, symmetric=False, search=False)
    assert torch.equal(answer.dense(), weight)


def test_moments_without_full_rank() -> None:
    """Fewer tokens than columns: the damping makes it solvable."""
    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    answer = nett.weights.gptq(torch.eye(64)[:9] + 0.01, inputs.T @ inputs / 5, bits=4)
    assert bool(torch.isfinite(answer.dense()).all())


def test_moments_that_are_none() -> None:
    with pytest.raises(NettError, match="no Cholesky factor"):
        upper_inverse(-torch.eye(4), 0.01)


def test_upper_inverse_is_the_factor() -> None:
    gram = torch.from_numpy(given()[1])
    upper = upper_inverse(gram, 0.01).double()
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
    assert torch.allclose(upper.T @ upper, torch.linalg.inv(damped), rtol=1e-4, atol=1e-6)
    assert torch.equal(upper, upper.triu())
