"""OPCM (P63): models merged one after the other, each projected off what is merged already."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any

import numpy as np

from nett.core.carrying import Carried, TensorName
from nett.core.dtypes import Array
from nett.core.layers import is_embedding
from nett.core.passes import Total
from nett.core.registry import Between, method
from nett.core.sums import dot

_BLOCK = 1 << 20  # elements that are float64 at a time
_WELL_CONDITIONED = 1e-4  # smallest over largest singular value, down to which a Gram matrix tells both to 1e-8


@method(
    papers=["P63"],
    title="OPCM, projection-based continual merging",
    grain="tensor",
    needs=["base"],
    identity={"alpha": 0.5},
    carries=True,
)
def opcm(
    base: Array, tuned: Sequence[Array], *, alpha: Annotated[float, Between(0, 1)] = 0.5
) -> Generator[Sequence[Any], list[Any], Array]:
    """Merge models in the order given, each without what lies along the merged ones' singular vectors.

    Formula: Y_1 = tau_1;  Y_t = Y_(t-1) + tau_t - U (mask * U^T tau_t V) V^T,  Y_(t-1) = U S V^T, the mask being
             the diagonal and the first r rows and columns;  merged = base + Y_n mean_i |tau_i| / |Y_n|
    Args:
        alpha: share of the sum of the singular values of what is merged already whose directions are closed to a new
            model (r is the largest number of them within that share); 0 closes the diagonal alone, 1 every pair of
            them.
    When to use: fine-tunes that come one by one: with --state DIR a model that comes later is merged in without the
        earlier ones, to the same bits as all at once. Memory and state do not grow with the number of models.
    When not: all models are at hand and may be tuned for together; the order of the models matters.
    Guarantee: measured. Linear are 2-D tensors not called as embeddings are; all others are added up plainly. Singular
        values below the rounding of the merged matrix (largest side * eps * largest value) count as none, and the
        diagonal ends with them: behind a rank-deficient task vector its vectors are arbitrary.
    Cost: reads every model once; for each matrix and model but the first, the eigenvectors of a Gram matrix of its
        shorter side.
    Source: P63, algorithm 1. Its normalisations after every model cancel: singular vectors do not depend on a
        factor, and the last one sets the norm.
    """
    (name,) = yield [TensorName()]
    linear = base.ndim == 2 and not is_embedding(name)

    def onto(merged: Array | None, delta: Array) -> tuple[Array, float]:
        square = dot(delta, delta)
        if merged is None:
            return delta, square
        return with_projected(merged, delta, alpha) if linear else np.asarray(merged + delta), square

    def fold(merged: Array | None, squares: list[float]) -> tuple[Array, list[float]]:
        squares = list(squares)
        for place in range(len(tuned)):  # no name for the model: the one before is let go before the next is read
            merged, square = onto(merged, np.asarray(tuned[place] - base))
            squares.append(square)
        return (np.zeros_like(base) if merged is None else merged), squares

    ((merged, squares),) = yield [Carried(fold)]
    parts = {str(i): square for i, square in enumerate(squares)} | {"merged": dot(merged, merged)}
    (said,) = yield [Total(parts, scope="model")]
    norm = said.pop("merged") ** 0.5
    factor = float(np.mean([square**0.5 for square in said.values()])) / norm if norm else 0.0
    return np.asarray(base + merged * base.dtype.type(factor))


def with_projected(merged: Array, delta: Array, alpha: float) -> Array:
    """``merged`` [m, n] plus ``delta`` without its part along ``merged``'s singular vectors; in their own type.

    The part is U R V^T, R being U^T delta V at its first r rows and columns and on its diagonal, zero elsewhere, and
    U and V the vectors of the thin decomposition: those of the full one beyond lie outside of R. With
    U = merged V / S it is merged (V / S R V^T), so that of the Gram matrix of the shorter side V and S are enough.
    """
    if merged.shape[0] < merged.shape[1]:
        return np.ascontiguousarray(with_projected(merged.T, delta.T, alpha).T)
    if not merged.size:
        return merged.copy()
    blocks = [slice(i, i + _step(merged)) for i in range(0, len(merged), _step(merged))]
    gram, cross = np.zeros((2, merged.shape[1], merged.shape[1]))
    for rows in blocks:
        block = _float64(merged[rows])
        gram += block.T @ block
        cross += block.T @ _float64(delta[rows])
    values, vectors = np.linalg.eigh(gram)
    singular, vectors = np.sqrt(np.maximum(values[::-1], 0.0)), vectors[:, ::-1]
    rank = _rank(singular, merged)
    if rank and singular[rank - 1] < _WELL_CONDITIONED * singular[0]:
        return _by_decomposition(merged, delta, alpha)
    if not rank:
        return np.asarray(merged + delta)
    singular, vectors = singular[:rank], vectors[:, :rank]
    masked = _masked((vectors.T @ cross @ vectors) / singular[:, None], _closed(singular, alpha))
    taken = vectors @ (masked / singular[:, None]) @ vectors.T
    out = np.empty_like(merged)
    for rows in blocks:
        block = _float64(merged[rows])
        out[rows] = block + _float64(delta[rows]) - block @ taken
    return out


def _by_decomposition(merged: Array, delta: Array, alpha: float) -> Array:
    """The same through the singular vectors themselves: where the smallest values are lost in a Gram matrix."""
    left, singular, right = np.linalg.svd(_float64(merged), full_matrices=False)
    rank = _rank(singular, merged)
    left, singular, right = left[:, :rank], singular[:rank], right[:rank]
    masked = _masked(left.T @ _float64(delta) @ right.T, _closed(singular, alpha))
    return np.asarray(_float64(merged) + _float64(delta) - left @ masked @ right).astype(merged.dtype)


def _rank(singular: Array, matrix: Array) -> int:
    """How many of the (descending) singular values stand above the rounding of the matrix."""
    least = singular[0] * max(matrix.shape) * np.finfo(matrix.dtype).eps
    return int(np.count_nonzero(singular > least))


def _closed(singular: Array, alpha: float) -> int:
    """r: the largest number of leading singular values that make up at most ``alpha`` of the sum of all.

    At alpha = 1 all: there the last bit of the sums would decide between all and all but one.
    """
    if alpha == 1:
        return int(singular.size)
    return int(np.count_nonzero(np.cumsum(singular) <= alpha * np.sum(singular)))


def _masked(seen: Array, closed: int) -> Array:
    """Of [k, k] the first ``closed`` rows and columns and the diagonal, zero elsewhere."""
    kept = np.diag(np.diagonal(seen))
    kept[:closed, :closed] = seen[:closed, :closed]
    return kept


def _step(matrix: Array) -> int:
    return max(1, _BLOCK // int(matrix.shape[1]))


def _float64(rows: Array) -> Array:
    return np.ascontiguousarray(rows, np.float64)
