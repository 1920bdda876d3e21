"""The permutations of a weight matching: from the weights, from several starting places, or with data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import UsageError
from nett.core.network import Network
from nett.core.symmetry import Symmetry
from nett.core.symmetry.matching import Alignment, align, align_all
from nett.merge.straight_through import straight_through as by_loss


@final
@dataclass(frozen=True)
class Matched:
    """orders: one a model. objective: what was maximised, sweep by sweep, in the best of the searches."""

    orders: list[dict[str, Array]]
    objective: tuple[float, ...]


def matched(
    models: Sequence[Mapping[str, Array]],
    symmetry: Symmetry,
    network: Network | None = None,
    *,
    straight_through: bool = False,
    restarts: int = 1,
    sweeps: int = 100,
    epochs: int = 20,
    rate: float = 0.01,
    seed: int = 0,
) -> Matched:
    """Orders that bring each model's units to the places of the others'; the first model's stay, if there are two.

    The first search starts from the places as they are, each further one from random ones.
    """
    if straight_through:
        if network is None:
            raise UsageError(
                "the straight-through search needs data", hint="Add --net FILE.py:FUNCTION --data FILE.npz."
            )
        orders, objective = [symmetry.identity()], 0.0
        for k, model in enumerate(models[1:]):
            one = by_loss(models[0], model, symmetry, network, epochs=epochs, rate=rate, seed=seed + k)
            orders.append(one.orders)
            objective += one.objective[-1]
        return Matched(orders, (_pairs(models), objective))
    best: list[Alignment] | None = None
    rng = np.random.default_rng(seed)
    for k in range(restarts if len(models) > 1 else 1):
        starts = [symmetry.identity() if not k or not i else symmetry.random(rng) for i in range(len(models))]
        found = _search(models, symmetry, starts, seed=seed + k, sweeps=sweeps)
        if best is None or found[-1].objective[-1] > best[-1].objective[-1]:
            best = found
    assert best is not None
    return Matched([a.orders for a in best], best[-1].objective)


def _search(
    models: Sequence[Mapping[str, Array]],
    symmetry: Symmetry,
    starts: Sequence[Mapping[str, Array]],
    *,
    seed: int,
    sweeps: int,
) -> list[Alignment]:
    if len(models) == 2:
        found = align(models[0], models[1], symmetry, seed=seed, sweeps=sweeps, start=starts[1])
        return [Alignment(symmetry.identity(), found.objective), found]
    return align_all(models, symmetry, seed=seed, sweeps=sweeps, starts=starts)


def _pairs(models: Sequence[Mapping[str, Array]]) -> float:
    """Inner product of the first model with all others as they are, without statistics."""
    names = [n for n in models[0] if not n.endswith(("running_mean", "running_var"))]
    return float(
        sum(np.vdot(models[0][n].astype(np.float64), m[n].astype(np.float64)) for m in models[1:] for n in names)
    )
