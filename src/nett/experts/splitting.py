"""A matrix as a low-rank part and whole rows of what that leaves: W = L R + S."""

from __future__ import annotations

from typing import Any

from nett.experts.protocol import Experts, Tensor


def split(experts: Experts, rank: float, rows: float) -> tuple[Experts, dict[str, Any]]:
    """Every matrix of every expert split and multiplied out again, and what the receipt says of it."""
    import torch

    numbers, whole, errors = 0, 0, []
    made = []
    for matrices in (experts.gate, experts.up, experts.down):
        new = torch.empty_like(matrices)
        for e, matrix in enumerate(matrices):
            left, right, kept, rest = parts(matrix, rank, rows)
            value = left @ right
            value[kept] += rest
            new[e] = value.to(matrix.dtype)
            numbers += left.numel() + right.numel() + rest.numel()
            whole += matrix.numel()
            norm = float(matrix.float().square().sum())
            errors.append(float((value - matrix.float()).square().sum()) / norm if norm else 0.0)
        made.append(new)
    about = {"numbers_of_whole": round(numbers / whole, 4), "split_error": max(errors)}
    return Experts(*made), about


def parts(matrix: Tensor, rank: float, rows: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L [out, r], R [r, in], the kept rows' numbers, and those rows of W - L R; float32. r is ``rank`` times the rank
    out * in / (out + in), at which the two parts have as many numbers as the matrix."""
    import torch

    out, columns = matrix.shape
    r = max(1, round(rank * out * columns / (out + columns)))
    u, s, v = torch.linalg.svd(matrix.float(), full_matrices=False)
    root = s[:r].sqrt()
    left, right = u[:, :r] * root, root[:, None] * v[:r]
    rest = matrix.float() - left @ right
    order = torch.argsort(rest.square().sum(1), descending=True, stable=True)
    kept = order[: round(rows * out)].sort().values
    return left, right, kept, rest[kept]
