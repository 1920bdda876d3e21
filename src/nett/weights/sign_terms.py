"""Matrices as sums of signs times low-rank magnitudes: taking one apart, packing the signs, putting it together."""

from __future__ import annotations

from collections.abc import Sequence

from nett.weights.protocol import Signs, Tensor

_EXACT = 128  # shorter side up to which a matrix is factored exactly
_OVER, _ROUNDS = 8, 6  # of the subspace iteration: columns beyond the rank, rounds
_BITS = (7, 6, 5, 4, 3, 2, 1, 0)
EIGHTH = 8  # a term's factors take at most this fraction of what its signs take, where their rank is chosen


def rank_for(rows: int, columns: int, rank: int = 0) -> int:
    """``rank``; for 0 the largest whose factors take an eighth of a bit a weight, at least 1."""
    return min(rank or max(1, rows * columns // (EIGHTH * 16 * (rows + columns))), rows, columns)


def term_bytes(rows: int, columns: int, rank: int) -> int:
    """Of one term: packed signs and two float16 factors."""
    return (rows * columns + 7) // 8 + 2 * rank * (rows + columns)


def taken_apart(matrix: Tensor, count: int, rank: int) -> tuple[list[Signs], list[float]]:
    """``count`` terms of a float32 matrix and the squared norms of what they leave, relative to the matrix's.

    Each takes the signs of what is left, and the leading singular directions of its magnitudes; what is taken away is
    the term as it is stored, in half precision.
    """
    import torch

    rest, whole = matrix.clone(), float(matrix.double().square().sum())
    terms, errors = [], [1.0 if whole else 0.0]
    for _ in range(count):
        plus = rest >= 0
        left, right = (part.to(torch.float16) for part in _leading(rest.abs(), rank))
        product = left.float() @ right.float()
        rest -= product.where(plus, -product)
        terms.append(Signs(packed(plus), left, right))
        errors.append(float(rest.double().square().sum()) / whole if whole else 0.0)
    return terms, errors


def composed(scale: Tensor, terms: Sequence[Signs]) -> Tensor:
    """The sum of the terms, its columns divided by ``scale``; float32."""
    rows, columns = terms[0].left.shape[0], terms[0].right.shape[1]
    total = scale.float().new_zeros(rows, columns)
    for term in terms:
        product = term.left.float() @ term.right.float()
        total += product.where(unpacked(term.signs, rows * columns).view(rows, columns), -product)
    return total / scale.float()


def packed(plus: Tensor) -> Tensor:
    """Booleans as bits, uint8 [ceil(n / 8)]: the first in the highest bit, zeros at the end."""
    import torch

    flat = torch.nn.functional.pad(plus.reshape(-1).to(torch.uint8), (0, -plus.numel() % 8))
    shifts = torch.tensor(_BITS, dtype=torch.uint8, device=plus.device)
    found: Tensor = (flat.view(-1, 8) << shifts).sum(1, dtype=torch.uint8)
    return found


def unpacked(words: Tensor, count: int) -> Tensor:
    """The first ``count`` bits, as booleans."""
    import torch

    shifts = torch.tensor(_BITS, dtype=torch.uint8, device=words.device)
    bits: Tensor = ((words.unsqueeze(1) >> shifts) & 1).view(-1)[:count].bool()
    return bits


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading singular directions of a matrix: [out, rank], [rank, in], each with the roots of the values."""
    import torch

    rows, columns = matrix.shape
    if min(rows, columns) <= _EXACT:
        outer, values, inner = torch.linalg.svd(matrix, full_matrices=False)
    else:
        drawn = torch.Generator().manual_seed(rank)
        basis = torch.randn(columns, min(rank + _OVER, columns, rows), generator=drawn).to(matrix.device)
        basis[:, 0] = 1.0  # all entries are positive, and so are the first direction's
        for _ in range(_ROUNDS):
            basis = torch.linalg.qr(matrix.T @ torch.linalg.qr(matrix @ basis)[0])[0]
        outer, values, turned = torch.linalg.svd(matrix @ basis, full_matrices=False)
        inner = turned @ basis.T
    root = values[:rank].sqrt()
    return outer[:, :rank] * root, root[:, None] * inner[:rank]
