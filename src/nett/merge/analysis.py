"""What P71 looks at: interpolation and its barrier, distances, singular values and how well singular vectors are aligned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.network import Network
from nett.core.symmetry import Symmetry

POINTS = 25
GAMMAS = (0.0, 0.1, 0.3)
Tensors = Mapping[str, Array]


def interpolated(one: Tensors, other: Tensors, share: float) -> dict[str, Array]:
    """(1 - share) one + share other, each tensor."""
    return {n: ((1 - share) * one[n].astype(np.float64) + share * other[n]).astype(one[n].dtype) for n in one}


def path(
    one: Tensors, other: Tensors, network: Network, *, points: int = POINTS, restate: bool = True
) -> list[tuple[float, float, float]]:
    """(share, loss, accuracy) along the line between two networks; BatchNorm's statistics anew at each point inside."""
    found = []
    for share in np.linspace(0.0, 1.0, points):
        here = interpolated(one, other, float(share))
        if restate and 0 < share < 1:
            here = network.restated(here)
        found.append((float(share), *network.loss(here)))
    return found


def barrier(line: Sequence[tuple[float, float, float]]) -> float:
    """max over l of L(l) - ((1 - l) L(0) + l L(1)): how far the loss rises above the straight line (P71, section 2)."""
    first, last = line[0][1], line[-1][1]
    return max(loss - ((1 - share) * first + share * last) for share, loss, _ in line)


def distance_ratio(one: Tensors, before: Tensors, after: Tensors) -> float:
    """(|a - b| - |a - P b|) / |a - b|, over weights: the share of the distance that the permutation takes away."""
    names = [n for n in one if not n.endswith(("running_mean", "running_var"))]

    def length(other: Tensors) -> float:
        return float(np.sqrt(sum(float(np.sum((one[n].astype(np.float64) - other[n]) ** 2)) for n in names)))

    whole = length(before)
    return (whole - length(after)) / whole if whole else 0.0


def matrices(tensors: Tensors) -> dict[str, Array]:
    """Every weight of two dimensions or more as ``[out, in * rest]`` in float64."""
    return {n: t.reshape(t.shape[0], -1).astype(np.float64) for n, t in tensors.items() if t.ndim >= 2 and t.size}


def decomposed(tensors: Tensors) -> dict[str, tuple[Array, Array, Array]]:
    """Name -> (left vectors ``[out, k]``, singular values ``[k]``, right vectors ``[k, in]``)."""
    return {n: np.linalg.svd(m, full_matrices=False) for n, m in matrices(tensors).items()}


def singular_alignment(
    one: Mapping[str, tuple[Array, Array, Array]], other: Mapping[str, tuple[Array, Array, Array]], gamma: float
) -> float:
    """R of P71: sum over layers and pairs (i, j) with both singular values at least ``gamma`` times their layer's largest of
    (u_i . u_j)(v_i . v_j), over the number of such directions of the first network; 1 where all are equal, 0 on average
    for unrelated ones."""
    total = count = 0.0
    for name, (u, s, v) in one.items():
        x, t, y = other[name]
        mine, theirs = s >= gamma * s[0], t >= gamma * t[0]
        total += float(np.sum((u[:, mine].T @ x[:, theirs]) * (v[mine] @ y[theirs].T)))
        count += int(np.count_nonzero(mine))
    return total / count if count else 0.0


def analysed(
    models: Sequence[Tensors], placed: Sequence[Tensors], symmetry: Symmetry, network: Network | None, *, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures and charts of the second model (and each further one) against the first."""
    figures: dict[str, Any] = {}
    charts: list[dict[str, Any]] = []
    if len(models) < 2:
        return figures, charts
    names = ["as they are", "matched", "permuted at random"]
    randomly = symmetry.apply(models[1], symmetry.random(np.random.default_rng(seed)))
    others = [models[1], placed[1], randomly]
    figures["distance_ratio"] = [distance_ratio(placed[0], m, p) for m, p in zip(models[1:], placed[1:], strict=True)]
    parts = [decomposed(placed[0]), *(decomposed(o) for o in others)]
    drift = max(
        float(np.max(np.abs(parts[1][n][1] - parts[2][n][1])) / max(parts[1][n][1][0], 1e-300)) for n in parts[1]
    )
    figures["singular_values_changed"] = drift
    rows: dict[str, list[float]] = {}
    for name, part in zip(names, parts[1:], strict=True):
        rows[name] = [singular_alignment(parts[0], part, gamma) for gamma in GAMMAS]
    figures["alignment"] = {str(g): {n: rows[n][k] for n in names} for k, g in enumerate(GAMMAS)}
    charts.append(
        {"kind": "grouped_bars", "title": "Alignment of singular vectors with the first model (R)",
         "labels": [f"gamma {g:g}" for g in GAMMAS], "series": rows,
         "note": "directions with a singular value of at least gamma times the layer's largest; 1 is the same directions"}
    )  # fmt: skip
    largest = max(parts[0], key=lambda n: min(len(parts[0][n][1]), 10**6))
    charts.append(
        {"kind": "lines", "title": f"Singular values of {largest}", "xlabel": "number", "ylabel": "value",
         "series": {
             "first model": _spread(parts[0][largest][1]), "second": _spread(parts[1][largest][1]),
             "second, matched": _spread(parts[2][largest][1]),
         }}
    )  # fmt: skip
    if network is not None and network.labels is not None:
        lines = {n: path(placed[0], o, network) for n, o in zip(names, others, strict=True)}
        figures["barrier"] = {n: barrier(line) for n, line in lines.items()}
        for k, word in ((1, "loss"), (2, "accuracy")):
            series = {n: [(p[0], p[k]) for p in line] for n, line in lines.items()}
            charts.append(
                {
                    "kind": "lines",
                    "title": f"{word.capitalize()} between the first and the second model",
                    "xlabel": "share of the second",
                    "ylabel": word,
                    "series": series,
                }
            )
    return figures, charts


def _spread(values: Array) -> list[tuple[float, float]]:
    picked = np.unique(np.linspace(0, len(values) - 1, min(len(values), 60)).astype(int))
    return [(float(i), float(values[i])) for i in picked]
