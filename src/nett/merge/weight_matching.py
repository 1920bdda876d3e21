"""Weight matching (P71): models trained apart, with their units brought to the same places before they are averaged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import UsageError
from nett.core.network import Network
from nett.core.registry import Between, method
from nett.core.symmetry import Symmetry
from nett.merge.analysis import analysed
from nett.merge.matching import matched
from nett.merge.protocol import for_each, share
from nett.merge.whole import Whole

ORDERS = "permutations.json"


@method(papers=["P71"], title="Weight matching", grain="model", needs=["symmetry"], extra="models", identity={})
def weight_matching(
    models: Sequence[Mapping[str, Array]],
    symmetry: Symmetry,
    network: Network | None = None,
    *,
    weights: float | Sequence[float] = 1.0,
    search: Literal["weights", "straight-through"] = "weights",
    restarts: Annotated[int, Between(1, 1000)] = 1,
    sweeps: Annotated[int, Between(1, 10000)] = 100,
    epochs: Annotated[int, Between(1, 10000)] = 20,
    rate: Annotated[float, Between(0, 1, open_low=True)] = 0.01,
    statistics: bool = True,
    analysis: bool = False,
    seed: Annotated[int, Between(0)] = 0,
) -> Whole:
    """Permute the hidden units of each model so that its weights lie nearest to the others', then average.

    Formula: max over P of <theta_a, P theta_b>, one group of units at a time (linear assignment) until none moves; of more
             than two models, each in turn against the mean of the others;  merged = sum w_i P_i theta_i / sum w_i
    Args:
        weights: share of each model in the average; one value, or one for each model.
        search: what decides the permutation: the weights alone, or the loss half way between the models on --data
            (straight-through estimator).
        restarts: searches from other starting places; the one with the largest inner product is taken.
        sweeps: most sweeps over all groups in one search.
        epochs: passes over the data (straight-through).
        rate: Adam's step (straight-through).
        statistics: estimate BatchNorm's running statistics anew, where --data is given.
        analysis: measure interpolation, distances and singular vectors too, for the report.
        seed: order of the groups, of the batches, and of the starting places.
    When to use: models of one architecture trained from different starting points on like data, which cannot be averaged
        as they are; wide networks.
    When not: fine-tunes of one base, which lie in the same places already; narrow networks, where a barrier stays.
    Cost: every model in memory twice in float32; an assignment takes the cube of a group's units, about 0.1 s for 1,000.
    Guarantee: each permuted model is the same function as before, proved for every group on random input before it is
        used; the average is measured.
    Source: P71; the search is that of Ainsworth et al. 2023 (Git Re-Basin), algorithms 1 to 3. Heads and what is inside
        them are our own extension.
    """
    shares = for_each(weights, len(models), "weights")
    if len(models) > 1 and abs(sum(shares)) < 1e-8:
        raise UsageError(
            f"weights = {', '.join(f'{w:g}' for w in shares)} sum to 0, and an average divides by their sum",
            where="merge/weight_matching",
        )
    found = matched(
        models, symmetry, network if search == "straight-through" else None, straight_through=search == "straight-through",
        restarts=restarts, sweeps=sweeps, epochs=epochs, rate=rate, seed=seed,
    )  # fmt: skip
    placed = [
        symmetry.apply(m, o) if i or len(models) > 2 else dict(m)
        for i, (m, o) in enumerate(zip(models, found.orders, strict=True))
    ]
    merged = averaged(placed, shares)
    notes = []
    if network is not None and statistics and network.norms and len(models) > 1:
        merged = network.restated(merged)
        notes.append(
            f"the statistics of {len(network.norms)} BatchNorm layers were estimated anew on {len(network.inputs):,} inputs"
        )
    elif len(models) > 1 and any(n.endswith("running_var") for n in merged):
        notes.append(
            "BatchNorm's statistics are averages of the models'; with --net and --data they are estimated anew"
        )
    figures: dict[str, Any] = {"objective_before": found.objective[0], "objective_after": found.objective[-1]}
    figures |= {"sweeps": len(found.objective) - 1, "search": search}
    rows = [_row(models[0], placed[0], m, p, o) for m, p, o in zip(models, placed, found.orders, strict=True)]
    extra, charts = ({}, ()) if not analysis else analysed(models, placed, symmetry, network, seed=seed)
    orders = [{name: order.tolist() for name, order in one.items()} for one in found.orders]
    files = {ORDERS: json.dumps({"models": orders}).encode()} if len(models) > 1 else {}
    return Whole(merged, figures | extra, rows, files, notes=notes, charts=charts)


def averaged(models: Sequence[Mapping[str, Array]], weights: Sequence[float]) -> dict[str, Array]:
    """The weighted mean of every tensor, summed in float64; one model comes back as it is."""
    if len(models) == 1:
        return {n: np.array(t) for n, t in models[0].items()}
    divisor = share(weights)
    found = {}
    for name, first in models[0].items():
        total = first.astype(np.float64) * weights[0]
        for model, weight in zip(models[1:], weights[1:], strict=True):
            total += model[name].astype(np.float64) * weight
        found[name] = (total / divisor).astype(first.dtype)
    return found


def _row(
    first: Mapping[str, Array],
    placed_first: Mapping[str, Array],
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    orders: Mapping[str, Array],
) -> dict[str, Any]:
    """How far a model lay from the first before and after, and how many of its units moved."""
    units = sum(len(o) for o in orders.values())
    moved = sum(int(np.count_nonzero(o != np.arange(len(o)))) for o in orders.values())
    return {
        "distance_before": distance(first, before),
        "distance_after": distance(placed_first, after),
        "moved": moved / units if units else 0.0,
    }


def distance(one: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    """L2 over all tensors but running statistics."""
    names = [n for n in one if not n.endswith(("running_mean", "running_var"))]
    return float(np.sqrt(sum(float(np.sum((one[n].astype(np.float64) - other[n]) ** 2)) for n in names)))
