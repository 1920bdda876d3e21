"""How small bytes of weights become when they are coded: order-0 entropies of byte planes, many pages at once."""

from __future__ import annotations

from collections.abc import Iterator

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


@jit
def _entropies(planes: Array, rows: int, full: float, out: Array) -> None:
    """Order-0 entropies in bits of each row of ``planes`` (rows * n), corrected by Miller and Madow (1955) for being a
    sample, added to ``out`` (rows); beyond ``full`` bits a plane is stored as it is."""
    n = planes.size // rows
    for row in range(rows):
        counts = np.zeros(256, np.int64)
        for i in range(row * n, row * n + n):
            counts[planes[i]] += 1
        total, seen = 0.0, 0
        for c in counts:
            if c:
                total += c * np.log2(c)
                seen += 1
        bits = np.log2(n) - total / n + (seen - 1) / (2 * n * np.log(2.0))
        out[row] += 8.0 if bits > full else bits


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


def share(counts: Array) -> float:
    """Coded bytes a byte: the mean entropy over planes; ``counts`` (planes, 1, 256) of all bytes of a tensor. A plane
    beyond ``FULL`` bits is stored as it is."""
    total = counts.sum(-1, keepdims=True)
    p = counts / np.maximum(total, 1)
    bits = -(p * np.log2(p, where=p > 0, out=np.zeros_like(p))).sum(-1)
    return float(np.where(bits > FULL, 8.0, bits).mean() / 8)


def page_shares(pages: Array, width: int, base: Array | None = None) -> Array:
    """Coded bytes a byte of each page, by the best way for all of them; (rows, bytes) -> (rows)."""
    rows, size = pages.shape
    raw, ground = pages.reshape(-1), None if base is None else base.reshape(-1)
    best: Array | None = None
    for one in widths(width, size):
        for w, form in forms(one, base is not None):
            found = np.zeros(rows)
            for plane in to_planes(raw, w, form, ground):
                _entropies(plane, rows, FULL, found)
            found /= 8 * w
            if best is None or found.mean() < best.mean():
                best = found
    assert best is not None
    return best
