"""Truncated factors against numpy.linalg.svd: exact ones, randomised ones, matrices that lie in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nett.core import low_rank
from nett.core.low_rank import factors, left_out, squared_norm
from support.tensors import Array


def decaying(rng: np.random.Generator, rows: int, columns: int, rank: int, rate: float = 0.5) -> Array:
    """A matrix with singular values rate^0, rate^1, … (rank of them)."""
    left = np.linalg.qr(rng.normal(size=(rows, rank)))[0]
    right = np.linalg.qr(rng.normal(size=(columns, rank)))[0]
    return np.asarray((left * rate ** np.arange(rank)) @ right.T)


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), rank=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_best_that_there_is(rows: int, columns: int, rank: int, seed: int) -> None:
    """Eckart and Young: what the best factors leave out is the rest of the singular values."""
    matrix = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    singular = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    made = factors(matrix, rank)
    kept = min(rank, rows, columns)
    assert made.left.shape == (rows, kept) and made.right.shape == (kept, columns)
    np.testing.assert_allclose(made.singular, singular[:kept], rtol=1e-6, atol=1e-7 * singular[0])
    lost = float(np.square(singular[kept:]).sum())
    assert left_out(matrix, made.left, made.right) == pytest.approx(lost, rel=1e-6, abs=1e-10 * singular[0] ** 2)
    product = made.left @ made.right
    assert float(np.square(matrix - product).sum()) == pytest.approx(lost, rel=1e-6, abs=1e-10 * singular[0] ** 2)


@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
def test_randomised_finds_what_is_exactly_low_rank(shape: tuple[int, int]) -> None:
    matrix = decaying(np.random.default_rng(0), *shape, rank=7, rate=0.6)
    made = factors(matrix, 7, limit=20)
    assert left_out(matrix, made.left, made.right) < 1e-24
    np.testing.assert_allclose(made.singular, 0.6 ** np.arange(7), rtol=1e-10)
    again = factors(matrix, 7, limit=20)
    assert (made.left == again.left).all() and (made.right == again.right).all()


@pytest.mark.parametrize("shape", [(200, 120), (120, 200)])
def test_randomised_is_near_the_best_on_noise(shape: tuple[int, int]) -> None:
    """A flat spectrum is the hardest; what is left out is at most one percent above the least."""
    matrix = np.random.default_rng(1).normal(size=shape)
    singular = np.linalg.svd(matrix, compute_uv=False)
    made = factors(matrix, 16, limit=20)
    least = np.square(singular[16:]).sum()
    assert least <= left_out(matrix, made.left, made.right) * (1 + 1e-12) <= 1.01 * least


def test_a_mapped_file_in_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "_BLOCK", 50)
    matrix = np.memmap(tmp_path / "m", np.float32, "w+", shape=(37, 11))
    matrix[:] = np.random.default_rng(2).normal(size=matrix.shape)
    singular = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)
    for limit in (1, 1024):
        made = factors(matrix, 11, limit=limit)
        np.testing.assert_allclose(made.singular, singular, rtol=1e-6)
    assert squared_norm(matrix) == pytest.approx(float(np.square(singular).sum()), rel=1e-12)


def test_nothing() -> None:
    made = factors(np.zeros((4, 6), np.float32), 2)
    assert (made.left @ made.right == 0).all() and left_out(np.zeros((4, 6)), made.left, made.right) == 0
