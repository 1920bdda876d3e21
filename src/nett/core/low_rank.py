"""The best factors of a given rank, and what they leave out.

A matrix whose shorter side is at most ``limit`` is factored exactly, through the Gram matrix of that side in float64;
a larger one by randomised subspace iteration (Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithms 4.4 and
5.1), seeded. Either way :func:`left_out` measures the error of the factors as they are, on every element. Matrices
are read in blocks of rows, so that they may lie in a file that is mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from nett.core.dtypes import Array

LIMIT = 1024
_BLOCK = 1 << 20  # elements in float64 at once
_OVER = 16  # columns of the random sketch beyond the rank
_ROUNDS = 4


@final
@dataclass(frozen=True)
class Factors:
    """``left`` [rows, r] @ ``right`` [r, columns], each holding the root of the ``singular`` values (descending)."""

    left: Array
    right: Array
    singular: Array


def _blocks(matrix: Array) -> Iterator[tuple[int, Array]]:
    """(first row, rows in float64, not to be written to), in order."""
    step = max(1, _BLOCK // max(1, matrix.shape[1]))
    for first in range(0, len(matrix), step):
        yield first, np.asarray(matrix[first : first + step], dtype=np.float64)


def squared_norm(matrix: Array) -> float:
    """Sum of squares of all elements."""
    return float(sum(np.vdot(block, block) for _, block in _blocks(matrix)))


def left_out(matrix: Array, left: Array, right: Array) -> float:
    """Squared Frobenius norm of ``matrix - left @ right``."""
    tall, wide = left.astype(np.float64), right.astype(np.float64)
    total = 0.0
    for first, block in _blocks(matrix):
        rest = block - tall[first : first + len(block)] @ wide
        total += float(np.vdot(rest, rest))
    return total


def factors(matrix: Array, rank: int, *, limit: int = LIMIT, seed: int = 0) -> Factors:
    """The ``rank`` leading singular directions of a two-dimensional matrix; fewer where it has fewer sides."""
    rank = min(rank, *matrix.shape)
    basis = _gram_basis(matrix) if min(matrix.shape) <= limit else _sketched_basis(matrix, rank, seed)
    return _from_basis(matrix, basis, rank)


def _gram_basis(matrix: Array) -> Array:
    """All directions of the shorter side, most important first: columns of a square orthogonal matrix."""
    rows, columns = matrix.shape
    if columns <= rows:
        gram = np.zeros((columns, columns))
        for _, block in _blocks(matrix):
            gram += block.T @ block
    else:
        gram = np.zeros((rows, rows))
        step = max(64, _BLOCK // rows)
        for first in range(0, columns, step):
            block = np.asarray(matrix[:, first : first + step], dtype=np.float64)
            gram += block @ block.T
    return np.asarray(np.linalg.eigh(gram)[1][:, ::-1])


def _sketched_basis(matrix: Array, rank: int, seed: int) -> Array:
    """Orthonormal columns that hold the leading directions of the shorter side."""
    rows, columns = matrix.shape
    rng = np.random.Generator(np.random.PCG64([seed, rows, columns]))
    width = min(rank + _OVER, rows, columns)
    basis = np.linalg.qr(rng.standard_normal((min(rows, columns), width)))[0]
    for _ in range(_ROUNDS):
        across = _times(matrix, basis) if columns <= rows else _transposed_times(matrix, basis)
        across = np.linalg.qr(across)[0]
        back = _transposed_times(matrix, across) if columns <= rows else _times(matrix, across)
        basis = np.linalg.qr(back)[0]
    return np.asarray(basis)


def _times(matrix: Array, right: Array) -> Array:
    return np.concatenate([block @ right for _, block in _blocks(matrix)])


def _transposed_times(matrix: Array, left: Array) -> Array:
    total = np.zeros((matrix.shape[1], left.shape[1]))
    for first, block in _blocks(matrix):
        total += block.T @ left[first : first + len(block)]
    return total


def _from_basis(matrix: Array, basis: Array, rank: int) -> Factors:
    """Project onto the basis, and take the projection's own singular directions."""
    rows, columns = matrix.shape
    tall = columns <= rows
    if basis.shape[1] > rank and basis.shape[0] == basis.shape[1]:
        basis = basis[:, :rank]
    across = _times(matrix, basis) if tall else _transposed_times(matrix, basis)
    outer, singular, inner = np.linalg.svd(across, full_matrices=False)
    outer, singular, along = outer[:, :rank], singular[:rank], (basis @ inner.T)[:, :rank]
    left, right = (outer, along) if tall else (along, outer)
    root = np.sqrt(singular)
    return Factors(left * root, (right * root).T, singular)
