"""Symmetries written by hand, for tests of what works on plain arrays."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from nett.core.symmetry import Group, Place, Symmetry
from support.tensors import Array


def column(n: int) -> Array:
    return np.arange(n)[:, None]


def mlp(*widths: int) -> Symmetry:
    """An MLP whose tensors are called ``0.weight``, ``0.bias``, ``1.weight``, …"""
    groups, shapes = [], {}
    for i, (a, b) in enumerate(pairwise(widths)):
        shapes |= {f"{i}.weight": (b, a), f"{i}.bias": (b,)}
        if i < len(widths) - 2:
            places = (
                Place(f"{i}.weight", 0, column(b), "producer"),
                Place(f"{i}.bias", 0, column(b), "producer"),
                Place(f"{i + 1}.weight", 1, column(b), "consumer"),
            )
            groups.append(Group(str(i), "neuron", places, ("relu",)))
    return Symmetry(tuple(groups), shapes)


def numbers(symmetry: Symmetry, seed: int, dtype: type = np.float32) -> dict[str, Array]:
    """Normal noise in the shapes of a symmetry."""
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(dtype) for n, s in symmetry.shapes.items()}
