"""Bytes of numbers as byte planes and back: the exponents of floats lie together and can be coded.

``rotated`` planes take the sign bit out of the way first, so that the exponent of bfloat16 and float32 fills one
plane. ``difference`` planes hold, for floats of 2, 4 or 8 bytes, the distance to a base in steps of the number line:
bit patterns are mapped to integers in the order of the values they stand for, subtracted modulo 2^k, and folded so
that small distances of either sign are small numbers. ``folded`` planes are those of a difference with the upper two
bytes as one plane of small numbers and an escape, and two short planes of the numbers that were escaped: fewer symbols
to code, and none so rare that it takes more room in a coder's table than it deserves. All of it is integer
arithmetic on bit patterns: every input comes back, NaN payloads and negative zeros included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from nett.core.codec import kernels
from nett.core.dtypes import Array
from nett.core.errors import NettError

# text: bytes as they are, for coders that match; grid: see nett.core.codec.grid
Form = Literal["plain", "rotated", "difference", "folded", "xor", "text", "grid"]
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
ESCAPE = 63  # of folded planes; part of the format. 31 to 127 differ by half a percent

_SPLIT: dict[tuple[str, int], Any] = {
    ("plain", 2): kernels.split2, ("rotated", 2): kernels.split_rotated2, ("difference", 2): kernels.split_difference2,
    ("plain", 4): kernels.split4, ("rotated", 4): kernels.split_rotated4, ("difference", 4): kernels.split_difference4,
}  # fmt: skip
_JOIN: dict[tuple[str, int], Any] = {
    ("plain", 2): kernels.join2, ("rotated", 2): kernels.join_rotated2, ("difference", 2): kernels.join_difference2,
    ("plain", 4): kernels.join4, ("rotated", 4): kernels.join_rotated4, ("difference", 4): kernels.join_difference4,
}  # fmt: skip


def to_planes(raw: Array, width: int, form: Form, base: Array | None = None) -> list[Array]:
    """``raw`` bytes (a multiple of ``width``, little endian) as uint8 planes of one length, lowest byte first; for
    ``folded``, see :func:`plane_count`, the last two are shorter.

    ``difference``, ``folded`` and ``xor`` need the ``base`` bytes, as many as ``raw``.
    """
    x = frozen(raw).view(UNSIGNED[width])
    planes = list(np.empty((width, x.size), np.uint8))
    if form == "folded":
        planes = to_planes(raw, width, "difference", base)
        small, *rare = np.empty((3, x.size), np.uint8)
        count = kernels.fold(planes[-2], planes[-1], ESCAPE, small, *rare)
        return [*planes[:-2], small, *(r[:count] for r in rare)]
    ground = _ground(base, width) if form in ("difference", "xor") else ()
    if (form, width) in _SPLIT:
        _SPLIT[form, width](x, *ground, *planes)
        return planes
    if form == "rotated":
        kernels.rotate(x, 1, 8 * width, y := np.empty_like(x))
    elif form == "difference":
        kernels.difference(x, ground[0], 8 * width, y := np.empty_like(x))
    else:
        y = x ^ ground[0] if form == "xor" else x
    for plane, column in zip(planes, y.view(np.uint8).reshape(-1, width).T, strict=True):
        plane[:] = column
    return planes


def plane_count(width: int, form: Form) -> int:
    """How many planes a form has."""
    return width + 1 if form == "folded" else width


def plane_size(before: Sequence[Array], width: int, form: Form, nbytes: int) -> int:
    """The bytes of the plane behind the planes ``before``, of a block of ``nbytes``."""
    if form != "folded" or len(before) < width - 1:
        return nbytes // width
    return int(np.count_nonzero(before[width - 2] == ESCAPE)) if len(before) == width - 1 else before[-1].size


def from_planes(planes: Sequence[Array], width: int, form: Form, base: Array | None, out: Array) -> None:
    """The inverse of :func:`to_planes`: fills the bytes ``out``. NettError where folded planes do not fit together."""
    numbers = out.view(UNSIGNED[width])
    planes = [frozen(p) for p in planes]
    if form == "folded":
        *lower, small, rare_low, rare_high = planes
        at = np.flatnonzero(small == ESCAPE)
        if not rare_low.size == rare_high.size == at.size:
            raise NettError(f"{rare_low.size:,} numbers are stored apart in place of {at.size:,}")
        low, high = small.copy(), np.zeros_like(small)
        low[at], high[at] = rare_low, rare_high
        return from_planes([*lower, low, high], width, "difference", base, out)
    ground = _ground(base, width) if form in ("difference", "xor") else ()
    if (form, width) in _JOIN:
        _JOIN[form, width](*planes, *ground, numbers)
        return None
    rows = out.reshape(-1, width)
    for column, plane in enumerate(planes):
        rows[:, column] = plane
    if form == "rotated":
        kernels.rotate(numbers, 8 * width - 1, 8 * width, numbers)
    elif form == "difference":
        kernels.undo_difference(numbers, ground[0], 8 * width, numbers)
    elif form == "xor":
        numbers ^= ground[0]
    return None


def _ground(base: Array | None, width: int) -> tuple[Any, ...]:
    """The base's numbers, as the further argument that some kernels take."""
    assert base is not None
    return (frozen(base).view(UNSIGNED[width]),)


def frozen(x: Array) -> Array:
    """A view that cannot be written to: kernels are compiled once, not for each mix of what can and what cannot."""
    view = x.view()
    view.flags.writeable = False
    return view
