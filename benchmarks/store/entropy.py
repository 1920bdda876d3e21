"""The entropy that the differences of a store are measured against, in plain NumPy from the formula."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nett.store.library import Library

Array = np.ndarray[Any, np.dtype[Any]]
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def of_differences(root: Path, digests: Iterable[str]) -> float:
    """Bits: the sum over tensors and byte planes of n times the order-0 entropy of the integer difference to the base
    that the store chose."""
    total = 0.0
    with Library.open(root) as library:
        for digest in digests:
            stored = library.objects.opened(digest)
            tuned, base = (library.objects.read(d, 0, stored.nbytes) for d in (digest, str(stored.base)))
            unsigned = UNSIGNED[stored.mode.width]
            planes = (
                difference(tuned.view(unsigned), base.view(unsigned))
                .view(np.uint8)
                .reshape(tuned.size // stored.mode.width, -1)
            )
            total += sum(planes.shape[0] * entropy(plane) for plane in planes.T)
    return total


def difference(x: Array, base: Array) -> Array:
    """Steps of the number line from base to x, folded so that both signs are small numbers."""
    bits = 8 * x.dtype.itemsize
    ordered = [np.where(v >> (bits - 1), ~v, v | v.dtype.type(1 << (bits - 1))) for v in (x, base)]
    steps = (ordered[0] - ordered[1]).astype(x.dtype)
    return (steps << 1) ^ np.where(steps >> (bits - 1), ~x.dtype.type(0), x.dtype.type(0))


def entropy(plane: Array) -> float:
    """Bits a byte."""
    share = np.bincount(plane, minlength=256) / plane.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())
