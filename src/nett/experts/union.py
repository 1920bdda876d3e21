"""One matrix for several, through the singular value decomposition of them side by side (P37).

[W_1 | … | W_n] = U S [V_1 | … | V_n]; the V_i are averaged, V = sum_i f_i V_i / sum_i f_i, and W = U S V. Since U S V_i = W_i,
that is the weighted mean of the W_i as long as no singular value is left out; and with the first k of them it is that mean
projected onto the first k columns of U. So the factors V need not be made: U is all that is taken from the decomposition.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nett.core.dtypes import Array
from nett.core.low_rank import factors


def union_rank(share: float, out: int, columns: int) -> int:
    """``share`` of the full rank of ``columns`` columns of ``out`` rows; at least 1."""
    return max(1, round(share * min(out, columns)))


def shared_basis(matrices: Sequence[Array], rank: int) -> Array:
    """float64 ``[out, rank]``: the leading left singular vectors of matrices ``[out, in]`` side by side."""
    left = factors(np.concatenate(list(matrices), axis=1), rank).left
    return np.asarray(np.linalg.qr(left)[0])  # its columns are orthogonal already; this makes each of length 1


def union_mean(matrices: Sequence[Array], weights: Sequence[float], share: float) -> tuple[Array, int]:
    """U_k S_k V and k. weights: what each matrix counts; they need not sum to 1."""
    total = float(sum(weights))
    mean = np.asarray(sum(w / total * m.astype(np.float64) for w, m in zip(weights, matrices, strict=True)))
    out, columns = mean.shape
    rank = union_rank(share, out, columns * len(matrices))
    if rank >= min(out, columns * len(matrices)):
        return mean, rank
    basis = shared_basis(matrices, rank)
    return np.asarray(basis @ (basis.T @ mean)), rank
