"""Which leaves of a search tree stay: reward against nodes held, with a bonus for covering clusters (an integer programme)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from nett.core.errors import missing_extra
from nett.core.retention.ilp import muted

# Of choices whose objectives differ by less than this, the one with more leaves, and then with the first ones, is taken.
TIE = 1e-5
_SCALE = 1e3  # the solver's tolerances are absolute, 1e-6


def tie_break(count: int) -> np.ndarray:
    """What keeping each of ``count`` leaves adds to the objective; in sum below :data:`TIE`."""
    return TIE / (2 * count) * (1 + np.arange(count, 0, -1) / count)


def objective(
    kept: Sequence[bool],
    shares: Sequence[float],
    lines: Sequence[Sequence[int]],
    clusters: Sequence[int],
    *,
    sharing: float,
    coverage: float,
) -> float:
    """sum of the kept shares - sharing * (nodes held / all nodes) + coverage * (clusters covered / all clusters)."""
    held = {a for line, k in zip(lines, kept, strict=True) if k for a in line}
    ancestors = {a for line in lines for a in line}
    covered = {c for c, k in zip(clusters, kept, strict=True) if k}
    cost = (len(held) + sum(kept)) / (len(ancestors) + len(shares))
    reward = sum(s for s, k in zip(shares, kept, strict=True) if k)
    return float(reward - sharing * cost + coverage * len(covered) / len(set(clusters)))


def chosen(
    shares: Sequence[float],
    lines: Sequence[Sequence[int]],
    clusters: Sequence[int],
    *,
    sharing: float,
    coverage: float,
) -> list[bool]:
    """The leaves that maximise :func:`objective`; at least one is kept.

    Args:
        shares: reward of each of ``n`` leaves, in sum 1; first leaves win ties.
        lines: the ancestors of each leaf from the root on, by number; leaves with an ancestor in common share it.
        clusters: of each leaf, by number.
    Rows: a leaf needs its parent and an ancestor its own parent (which says the same as y_j >= x_i for every leaf i below
    j, in fewer rows; y_j <= sum of x holds by itself, since nodes cost); a cluster needs one of its leaves.
    Source: P12, arXiv:2502.13575 (the integer programme).
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ImportError as error:
        raise missing_extra("scipy", "store", "cache/ets") from error
    n = len(shares)
    if n == 1:
        return [True]
    ancestors = {a: i for i, a in enumerate(dict.fromkeys(a for line in lines for a in line))}
    groups = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    m, k = len(ancestors), len(groups)
    below = {(n + ancestors[b], n + ancestors[a]) for line in lines for a, b in itertools.pairwise(line)}
    below |= {(i, n + ancestors[line[-1]]) for i, line in enumerate(lines) if line}
    needs = [{child: 1.0, parent: -1.0} for child, parent in sorted(below)]
    needs += [
        {n + m + g: 1.0} | {i: -1.0 for i, c in enumerate(clusters) if groups[c] == g} for g in range(k)
    ]  # fmt: skip
    needs.append(dict.fromkeys(range(n), -1.0))
    upper = np.r_[np.zeros(len(needs) - 1), -1.0]
    entries = [(row, column, value) for row, found in enumerate(needs) for column, value in found.items()]
    rows, columns, values = zip(*entries, strict=True)
    matrix = csr_array((values, (rows, columns)), shape=(len(needs), n + m + k))
    cost = sharing / (m + n)
    gains = np.r_[np.asarray(shares, np.float64) - cost + tie_break(n), np.full(m, -cost), np.full(k, coverage / k)]
    with muted():
        found = milp(
            -_SCALE * gains,
            integrality=np.r_[np.ones(n), np.zeros(m + k)],  # the others are whole where the leaves are
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, ub=upper),
            options={"mip_rel_gap": 0.0},
        )
    if found.x is None:
        raise RuntimeError(f"the integer programme was not solved: {found.message}")
    return [bool(x > 0.5) for x in found.x[:n]]
