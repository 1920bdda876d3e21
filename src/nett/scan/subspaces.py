"""The leading directions in which fine-tunes change one matrix, and how far those of two are from each other."""

from __future__ import annotations

from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.moved import Difference
from nett.core.spectrum import gram_of_columns

LIMIT = 1024
_STEP = 1024  # columns turned into float64 at once


def right_directions(matrix: Any, rank: int, seed: int, limit: int = LIMIT) -> tuple[Array, bool]:
    """Orthonormal ``[columns, at most rank]``: leading right singular vectors, and whether rows were sampled for them.

    Exact for up to ``limit`` columns or rows; of a larger matrix, ``limit`` seeded rows are looked at. Fewer columns
    come back where the matrix has a lower rank, none where it is zero or not finite.
    """
    rows, columns = matrix.shape
    if columns <= limit:
        gram = gram_of_columns(matrix, rows, columns)
        if not np.isfinite(gram).all():
            return np.zeros((columns, 0)), False
        energies, vectors = np.linalg.eigh(gram)
        return vectors[:, ::-1][:, : _count(energies, rank)], False
    chosen = np.arange(rows)
    if rows > limit:
        chosen = np.sort(np.random.Generator(np.random.PCG64([seed, rows, columns])).choice(rows, limit, replace=False))
    part = np.empty((len(chosen), columns), np.float32)
    for place, row in enumerate(chosen):
        part[place] = matrix.values(int(row) * columns, (int(row) + 1) * columns)
    if not np.isfinite(part).all():
        return np.zeros((columns, 0)), rows > limit
    gram = np.zeros((len(part), len(part)))
    for first in range(0, columns, _STEP):
        block = part[:, first : first + _STEP].astype(np.float64)
        gram += block @ block.T
    energies, vectors = np.linalg.eigh(gram)
    kept: Array = vectors[:, ::-1][:, : _count(energies, rank)]
    along = [part[:, first : first + _STEP].T.astype(np.float64) @ kept for first in range(0, columns, _STEP)]
    return np.linalg.qr(np.concatenate(along))[0], rows > limit


def _count(energies: Array, rank: int) -> int:
    """How many of the ascending eigenvalues stand out of rounding, ``rank`` at most."""
    noise = max(float(energies[-1]), 0.0) * len(energies) * float(np.finfo(np.float64).eps)
    return min(rank, int(np.count_nonzero(energies > noise)))


def angles(rank: int, seed: int, base: Any, *tuned: Any) -> dict[str, Any]:
    """Of each pair of fine-tunes: the mean squared cosine of the principal angles between their leading directions (1
    for the same subspace, 0 for orthogonal ones), and the smallest angle in degrees. ``chance``: what two random
    subspaces of these sizes would have on average. Holds one piece of the matrix at a time, and directions."""
    found = [right_directions(Difference(base, one), rank, seed) for one in tuned]
    directions, columns = [d for d, _ in found], base.shape[1]
    pairs: list[tuple[float, float] | None] = []
    for s, first in enumerate(directions):
        for second in directions[s + 1 :]:
            least = min(first.shape[1], second.shape[1])
            if not least:
                pairs.append(None)
                continue
            cosines = np.clip(np.linalg.svd(first.T @ second, compute_uv=False), 0.0, 1.0)
            pairs.append((float(np.square(cosines).sum() / least), float(np.degrees(np.arccos(cosines[0])))))
    most = max((d.shape[1] for d in directions), default=0)
    return {"pairs": pairs, "sampled": any(s for _, s in found), "chance": most / columns, "rank": most}
