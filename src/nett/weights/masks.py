"""Which entries of a matrix stay: the highest scores of each row, of all, or N of each M neighbours."""

from __future__ import annotations

import re
from typing import Literal

from nett.core.errors import Refused, UsageError
from nett.weights.protocol import Tensor


def parse_pattern(pattern: str) -> tuple[int, int] | None:
    """``2:4`` as (2, 4): two of four neighbours in a row stay; None for ``unstructured``."""
    if pattern == "unstructured":
        return None
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    if not found or not 0 < int(found[1]) <= int(found[2]):
        raise UsageError(f"pattern = {pattern!r} is neither 'unstructured' nor N:M, such as 2:4 (2 of 4 stay)")
    return int(found[1]), int(found[2])


def kept(scores: Tensor, sparsity: float, pattern: str, scope: Literal["row", "tensor"] = "row") -> Tensor:
    """Booleans ``[out, in]``: exactly round(sparsity * size) entries of each scope go, those with the lowest scores
    (of equal ones the first); by N:M, ``sparsity`` means nothing."""
    import torch

    of = parse_pattern(pattern)
    rows, columns = scores.shape
    if of is not None:
        if columns % of[1]:
            raise Refused(f"a row of {columns} columns cannot be cut into groups of {of[1]}")
        flat, drop = scores.reshape(-1, of[1]), of[1] - of[0]
    else:
        flat = scores if scope == "row" else scores.reshape(1, -1)
        drop = round(sparsity * flat.shape[1])
    stay = torch.ones(flat.shape, dtype=torch.bool, device=scores.device)
    if drop:
        lowest = flat.argsort(dim=1, stable=True)[:, :drop]
        stay.scatter_(1, lowest, False)
    return stay.reshape(rows, columns)
