"""Which expert joins which: similarities as matrices ``[E, E]``, and groups around leaders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nett.core.dtypes import Array
from nett.experts.protocol import Layer, Tensor


def cosines(products: Tensor) -> Array:
    """Cosines from inner products ``[E, E]``; 0 where a norm is."""
    inner = np.asarray(products, np.float64)
    norms = np.sqrt(np.maximum(np.diagonal(inner), 0))
    scale = np.outer(norms, norms)
    return np.asarray(np.divide(inner, scale, out=np.zeros_like(inner), where=scale > 0))


def covering(layer: Layer, counts: Array, alike: Array, number: int) -> list[int]:
    """Leaders chosen one by one so that all use is covered best: each is the expert that adds most to the sum over experts
    of use times likeness to the nearest leader (a copy of a leader adds nothing). Equally many of each pool; ascending."""
    each, found = number // len(layer.pools), list[int]()
    near = np.maximum(alike, 0.0)
    best = np.zeros(len(alike))
    room = {e: i for i, pool in enumerate(layer.pools) for e in pool}
    left = [each] * len(layer.pools)
    while len(found) < each * len(layer.pools):
        gain = (counts[:, None] * np.maximum(near - best[:, None], 0.0)).sum(0)
        open_to = [e for e in range(len(alike)) if e not in found and left[room[e]] > 0]
        chosen = max(open_to, key=lambda e: (gain[e], counts[e], -e))
        found.append(chosen)
        left[room[chosen]] -= 1
        best = np.maximum(best, near[:, chosen])
    return sorted(found)


def joined_to(leaders: Sequence[int], alike: Array, *, seed: int | None = None) -> list[int]:
    """For each expert the number of the group that it joins: its own if it leads one, otherwise that of the leader that
    it is most alike (ties: the first), or with ``seed`` any."""
    count = len(alike)
    near = alike[:, list(leaders)]
    chosen = near.argmax(1) if seed is None else np.random.default_rng(seed).integers(len(leaders), size=count)
    chosen[list(leaders)] = np.arange(len(leaders))
    return [int(g) for g in chosen]
