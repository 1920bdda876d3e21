"""The singular values of a matrix that is read piece by piece, and what they say about its rank.

A matrix whose shorter side is at most ``limit`` is taken whole, through the Gram matrix of that side. Of a larger
one, ``limit`` seeded rows (and at most four times as many columns) are looked at: half of the rows give the
directions, the other half tells what share of the energy these directions hold, so that the answer is not
flattered by the rows it was fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Protocol, final, runtime_checkable

import numpy as np

from nett.core.dtypes import Array

_BLOCK = 1 << 18  # elements in memory at once, beside the Gram matrix


@runtime_checkable
class Matrix(Protocol):
    """Two-dimensional, row-major, read in ranges of its flattened elements."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def values(self, start: int, stop: int) -> Array: ...


@final
@dataclass(frozen=True)
class Spectrum:
    """What is known of a matrix's singular values.

    ``singular``: descending, of the part looked at. ``captured[r - 1]``: share of the squared Frobenius norm that
    the best ``r`` directions hold. ``norm``: Frobenius norm of the part looked at.
    """

    shape: tuple[int, int]
    looked_at: tuple[int, int]
    singular: Array
    captured: Array
    norm: float

    @property
    def sampled(self) -> bool:
        return self.looked_at != self.shape

    @property
    def full_rank(self) -> int:
        """The most that the effective rank could be: of a sample, half of its rows are what it is told from."""
        return min(self.looked_at[0] // 2, self.looked_at[1]) if self.sampled else min(self.shape)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 for a zero matrix."""
        total = float(self.singular.sum())
        if total == 0.0:
            return 0.0
        share = self.singular[self.singular > 0] / total
        return float(np.exp(-np.sum(share * np.log(share))))

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm by squared largest singular value; 0 for a zero matrix."""
        squares = self.singular**2
        return float(squares.sum() / squares[0]) if squares.size and squares[0] > 0 else 0.0

    def rank_for(self, energy: float) -> tuple[int, float] | None:
        """The smallest rank that holds ``energy`` of the squared norm, and its relative Frobenius error.

        None where the sample does not show such a rank.
        """
        if self.norm == 0.0:
            return 0, 0.0
        rank = int(np.searchsorted(self.captured, energy)) + 1
        if rank > len(self.captured):
            return None
        return rank, sqrt(max(0.0, 1.0 - float(self.captured[rank - 1])))


def spectrum(matrix: Matrix, *, limit: int = 1024, seed: int = 0) -> Spectrum | None:
    """Singular values of a matrix; None where it holds NaN or infinity, or has no elements."""
    rows, cols = matrix.shape
    if rows * cols == 0:
        return None
    with np.errstate(all="ignore"):  # what is not finite shows in the end, as None
        if min(rows, cols) > limit:
            return _sampled(matrix, rows, cols, limit, seed)
        gram = gram_of_columns(matrix, rows, cols) if rows >= cols else _gram_of_rows(matrix, rows, cols)
    if not np.isfinite(gram).all():
        return None
    energies = _cleaned(np.linalg.eigvalsh(gram))
    total = float(energies.sum())
    captured = np.cumsum(energies) / total if total else energies
    return Spectrum((rows, cols), (rows, cols), np.sqrt(energies), captured, sqrt(total))


def _cleaned(eigenvalues: Array) -> Array:
    """Eigenvalues of a Gram matrix, descending; what rounding alone explains is zero."""
    descending = eigenvalues[::-1]
    noise = max(float(descending[0]), 0.0) * len(descending) * np.finfo(np.float64).eps
    return np.where(descending > noise, descending, 0.0)


def gram_of_columns(matrix: Matrix, rows: int, cols: int) -> Array:
    """``matrix.T @ matrix`` in float64, read in blocks of rows."""
    gram = np.zeros((cols, cols))
    step = max(1, _BLOCK // cols)
    for first in range(0, rows, step):
        last = min(rows, first + step)
        block = matrix.values(first * cols, last * cols).astype(np.float64).reshape(last - first, cols)
        gram += block.T @ block
    return gram


def _gram_of_rows(matrix: Matrix, rows: int, cols: int) -> Array:
    gram = np.zeros((rows, rows))
    step = cols if rows * cols <= 4 * _BLOCK else max(64, 2 * _BLOCK // rows)
    for first in range(0, cols, step):
        last = min(cols, first + step)
        if last - first == cols:
            block = matrix.values(0, rows * cols).astype(np.float64).reshape(rows, cols)
        else:
            block = np.empty((rows, last - first))
            for row in range(rows):
                block[row] = matrix.values(row * cols + first, row * cols + last)
        gram += block @ block.T
    return gram


def _sampled(matrix: Matrix, rows: int, cols: int, limit: int, seed: int) -> Spectrum | None:
    rng = np.random.Generator(np.random.PCG64([seed, rows, cols]))
    chosen = np.sort(rng.choice(rows, limit, replace=False))
    columns = np.sort(rng.choice(cols, 4 * limit, replace=False)) if cols > 4 * limit else np.arange(cols)
    part = np.empty((limit, len(columns)), np.float32)
    for place, row in enumerate(chosen):
        part[place] = matrix.values(int(row) * cols, (int(row) + 1) * cols)[columns]
    if not np.isfinite(part).all():
        return None
    order = rng.permutation(limit)  # neighbouring rows may be alike: deal them to both halves
    fitted = part[order[: limit // 2]].astype(np.float64)
    values, vectors = np.linalg.eigh(fitted @ fitted.T)
    energies = _cleaned(values)
    singular = np.sqrt(energies)
    kept = int(np.count_nonzero(energies))
    directions = fitted.T @ vectors[:, ::-1][:, :kept] / singular[:kept]
    held_out = part[order[limit // 2 :]].astype(np.float64)
    total = float(np.sum(np.square(held_out)))
    along = np.sum(np.square(held_out @ directions), axis=0)
    captured = np.minimum(np.cumsum(along) / total, 1.0) if total else np.zeros(0)
    norm = sqrt(total + float(energies.sum()))
    return Spectrum((rows, cols), (limit, len(columns)), singular[:kept], captured, norm)
