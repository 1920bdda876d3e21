"""A matrix as a low-rank part and whole rows of what that leaves: W = L R + S."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nett.experts.protocol import Experts, Tensor

Parts = Mapping[str, Tensor]  # left, right, rows, rest of one matrix, as nett.core.checkpoint.split keeps them


def split(experts: Experts, rank: float, rows: float) -> tuple[dict[str, list[Parts]], dict[str, Any]]:
    """The parts of every matrix (role -> one for each expert), in the model's type, and what the receipt says of it."""
    numbers, whole, errors = 0, 0, []
    found: dict[str, list[Parts]] = {}
    for role in ("gate", "up", "down"):
        found[role] = []
        for matrix in getattr(experts, role):
            made = parts(matrix, rank, rows)
            found[role].append(made)
            numbers += sum(made[p].numel() for p in ("left", "right", "rest"))
            whole += matrix.numel()
            norm = float(matrix.float().square().sum())
            gap = float((multiplied(made).float() - matrix.float()).square().sum())
            errors.append(gap / norm if norm else 0.0)
    return found, {"numbers_of_whole": round(numbers / whole, 4), "split_error": max(errors)}


def parts(matrix: Tensor, rank: float, rows: float) -> Parts:
    """L [out, r], R [r, in], the numbers of the kept rows, and those rows of W - L R. r is ``rank`` times the rank
    out * in / (out + in), at which the two have as many numbers as the matrix."""
    import torch

    out, columns = matrix.shape
    r = max(1, round(rank * out * columns / (out + columns)))
    u, s, v = torch.linalg.svd(matrix.float(), full_matrices=False)
    root = s[:r].sqrt()
    left, right = (u[:, :r] * root).to(matrix.dtype), (root[:, None] * v[:r]).to(matrix.dtype)
    rest = matrix.float() - left.float() @ right.float()
    order = torch.argsort(rest.square().sum(1), descending=True, stable=True)
    kept = order[: round(rows * out)].sort().values
    return {"left": left, "right": right, "rows": kept.to(torch.int32), "rest": rest[kept].to(matrix.dtype)}


def multiplied(made: Parts) -> Tensor:
    """The matrix that the parts stand for, in their type."""
    value = made["left"].float() @ made["right"].float()
    value[made["rows"].long()] += made["rest"].float()
    return value.to(made["left"].dtype)
