"""How small bytes of weights become when they are coded: order-0 entropies of byte planes, many pages at once."""

from __future__ import annotations

from collections.abc import Iterator
from math import log

import numpy as np

from nett.core.codec.coders import FULL
from nett.core.codec.planes import Form, to_planes
from nett.core.dtypes import Array
from nett.core.jit import jit

OWN: tuple[Form, ...] = ("plain", "rotated")
TO_BASE: tuple[Form, ...] = ("difference", "xor")


@jit
def _count(planes: Array, rows: int, out: Array) -> None:
    """``planes`` (rows * n) of bytes -> ``out`` (rows, 256), added to what it holds."""
    n = planes.size // rows
    for row in range(rows):
        for i in range(row * n, row * n + n):
            out[row, planes[i]] += 1


def widths(width: int, nbytes: int) -> tuple[int, ...]:
    """The element sizes to try: the one that the header tells, or those that are usual."""
    return tuple(w for w in ((width,) if width else (2, 4, 1)) if nbytes % w == 0) or (1,)


def forms(width: int, to_base: bool) -> Iterator[tuple[int, Form]]:
    """Ways to code elements of ``width`` bytes."""
    for form in TO_BASE if to_base else OWN if width > 1 else OWN[:1]:
        yield width, form


def count(raw: Array, rows: int, width: int, form: Form, base: Array | None, out: Array) -> None:
    """Add the bytes of each plane of ``raw`` (rows of equal length, flat) to ``out`` (width, rows, 256)."""
    for plane, counts in zip(to_planes(raw, width, form, base), out, strict=True):
        _count(plane, rows, counts)


def share(counts: Array, *, corrected: bool) -> Array:
    """Coded bytes a byte: the mean entropy over planes; ``counts`` (planes, rows, 256) -> (rows).

    A plane beyond ``FULL`` bits is stored as it is. ``corrected``: by Miller and Madow (1955) for being a sample.
    """
    total = counts.sum(-1, keepdims=True)
    p = counts / np.maximum(total, 1)
    bits = -(p * np.log2(p, where=p > 0, out=np.zeros_like(p))).sum(-1)
    if corrected:
        seen = (counts > 0).sum(-1)
        bits += np.where(seen > 1, (seen - 1) / (2 * log(2) * np.maximum(total[..., 0], 1)), 0.0)
    bits = np.where(bits > FULL, 8.0, bits)
    return np.asarray(bits.mean(0) / 8)


def page_shares(pages: Array, width: int, base: Array | None = None) -> Array:
    """Coded bytes a byte of each page, by the best way for all of them; (rows, bytes) -> (rows)."""
    rows, size = pages.shape
    raw, ground = pages.reshape(-1), None if base is None else base.reshape(-1)
    best: Array | None = None
    for one in widths(width, size):
        for w, form in forms(one, base is not None):
            counts = np.zeros((w, rows, 256), np.int32)
            count(raw, rows, w, form, ground, counts)
            found = share(counts, corrected=True)
            if best is None or found.mean() < best.mean():
                best = found
    assert best is not None
    return best
