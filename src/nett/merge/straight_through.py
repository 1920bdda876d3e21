"""The straight-through estimator (Ainsworth et al. 2023, section 3.3): the permutation whose midpoint has the least loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nett.core.dtypes import Array
from nett.core.network import Network
from nett.core.symmetry import Symmetry
from nett.core.symmetry.matching import Alignment, align

_BETAS, _TINY = (0.9, 0.999), 1e-8  # Adam's


def straight_through(
    target: Mapping[str, Array],
    model: Mapping[str, Array],
    symmetry: Symmetry,
    network: Network,
    *,
    epochs: int = 20,
    rate: float = 0.01,
    batch: int = 256,
    seed: int = 0,
) -> Alignment:
    """Orders for ``model`` that make the loss half way to ``target`` small.

    A free copy of the target's weights is trained: going forward, it is replaced by the permutation of ``model`` that lies
    nearest to it (weight matching); going back, the gradient at the midpoint goes to the free copy. Returns the orders
    with the least loss over a whole epoch, and that loss after each epoch at which it fell, negated.
    """
    rng = np.random.default_rng(seed)
    free = {n: np.array(t) for n, t in target.items()}
    moments = {n: (np.zeros_like(t), np.zeros_like(t)) for n, t in free.items()}
    orders: Mapping[str, Array] = symmetry.identity()
    best: tuple[float, Mapping[str, Array]] = (np.inf, orders)
    fell, step = [], 0
    count = len(network.inputs)
    for _ in range(epochs):
        rows = rng.permutation(count)
        for start in range(0, count, batch):
            orders = align(free, model, symmetry, seed=seed, start=orders).orders
            placed = symmetry.apply(model, orders)
            middle = {n: ((target[n] + placed[n]) / 2).astype(target[n].dtype) for n in target}
            _, gradients = network.gradients(middle, rows[start : start + batch])
            step += 1
            for name, gradient in gradients.items():
                first, second = moments[name]
                half = gradient / 2  # the midpoint moves half as far
                first += (1 - _BETAS[0]) * (half - first)
                second += (1 - _BETAS[1]) * (half * half - second)
                away = np.sqrt(second / (1 - _BETAS[1] ** step)) + _TINY
                free[name] -= (rate * first / (1 - _BETAS[0] ** step) / away).astype(free[name].dtype)
        orders = align(free, model, symmetry, seed=seed, start=orders).orders
        placed = symmetry.apply(model, orders)
        loss, _ = network.loss({n: ((target[n] + placed[n]) / 2).astype(target[n].dtype) for n in target})
        if loss < best[0]:
            best = (loss, {n: o.copy() for n, o in orders.items()})
            fell.append(-loss)
    return Alignment(dict(best[1]), tuple(fell) or (-np.inf,))
