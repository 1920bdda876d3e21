"""Bits for each part of a model under a budget: the choice with the least sum of costs (a knapsack, by HiGHS)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from nett.core.checkpoint.writer import byte_size
from nett.core.errors import NettError, Refused, UsageError


@final
@dataclass(frozen=True)
class Choice:
    """The setting of each part, and what they come to. ``bound``: no choice within the budget costs less."""

    settings: Mapping[int, str]
    bytes: int
    cost: float
    bound: float


def parse_budget(text: str, weights: int) -> int:
    """``3.2bit`` (a weight, scales included) or ``80MB`` as bytes for so many weights."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*bits?\s*", text)
    if found:
        return int(float(found[1]) * weights / 8)
    try:
        return byte_size(text)
    except UsageError as error:
        raise UsageError(
            f"budget = {text!r} is neither bits a weight, such as 3.2bit, nor a size, such as 80MB"
        ) from error


def choose(costs: Sequence[Mapping[str, float]], sizes: Sequence[Mapping[str, int]], budget: int) -> Choice:
    """One setting a part. ``costs`` and ``sizes`` [bytes]: setting -> value, one mapping a part; Refused where even the
    smallest settings do not fit."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    least = sum(min(s.values()) for s in sizes)
    if least > budget:
        raise Refused(
            f"even the smallest settings take {least:,} bytes, and the budget is {budget:,}",
            hint="A larger --budget, or fewer --bits.",
        )
    pairs = [(part, name) for part, s in enumerate(sizes) for name in s]
    cost = np.array([max(0.0, costs[part][name]) for part, name in pairs])
    size = np.array([sizes[part][name] for part, name in pairs], np.float64)
    one_each = csr_array(
        (np.ones(len(pairs)), ([p for p, _ in pairs], range(len(pairs)))), shape=(len(sizes), len(pairs))
    )
    solved = milp(
        cost,
        integrality=np.ones(len(pairs)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(csr_array(size[None] / max(1, budget)), -np.inf, 1.0),
        ],
        options={"mip_rel_gap": 1e-6, "time_limit": 60},
    )
    if solved.x is None:
        raise NettError(f"the solver found no choice: {solved.message}")
    taken = [pair for pair, x in zip(pairs, solved.x, strict=True) if x > 0.5]
    total = sum(sizes[part][name] for part, name in taken)
    spent = sum(max(0.0, costs[part][name]) for part, name in taken)
    return Choice(dict(taken), int(total), float(spent), float(solved.mip_dual_bound))
