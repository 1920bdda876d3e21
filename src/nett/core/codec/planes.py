"""Bytes of numbers as byte planes and back: the exponents of floats lie together and can be coded.

``rotated`` planes take the sign bit out of the way first, so that the exponent of bfloat16 and float32 fills one
plane. ``difference`` planes hold, for floats of 2, 4 or 8 bytes, the distance to a base in steps of the number line:
bit patterns are mapped to integers in the order of the values they stand for, subtracted modulo 2^k, and folded so
that small distances of either sign are small numbers. ``pairs`` and ``fours`` are a difference with its upper two
bytes as one number; two of those below 15, or four below 3, share a byte, and the others are kept apart. Huffman
spends a bit on a symbol at least: on four numbers at once that is little, and a quarter of the symbols is soon decoded.

All of it is integer arithmetic on bit patterns: every input comes back, NaN payloads and negative zeros included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from nett.core.codec import kernels, packed
from nett.core.dtypes import Array
from nett.core.errors import NettError

# text: bytes as they are, for coders that match; grid: see nett.core.codec.grid
Form = Literal["plain", "rotated", "difference", "pairs", "fours", "xor", "text", "grid"]
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_NARROW = {2: np.int16, 4: np.int32}  # whose differences have kernels of their own
PACKED: Mapping[Form, int] = {"pairs": 2, "fours": 4}  # numbers a byte

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
    ``pairs`` and ``fours``, the last three are shorter: packed numbers, the others' lower and upper bytes.

    All forms but ``plain`` and ``rotated`` need the ``base`` bytes, as many as ``raw``.
    """
    if form in PACKED:
        return _packed(to_planes(raw, width, "difference", base), PACKED[form])
    x = frozen(raw).view(UNSIGNED[width])
    planes = list(np.empty((width, x.size), np.uint8))
    ground = _ground(base, width, form) if form in ("difference", "xor") else ()
    if (form, width) in _SPLIT:
        _SPLIT[form, width](x.view(ground[0].dtype) if ground else x, *ground, *planes)
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


def from_planes(planes: Sequence[Array], width: int, form: Form, base: Array | None, out: Array) -> None:
    """The inverse of :func:`to_planes`: fills the bytes ``out``. NettError where planes do not fit together."""
    numbers = out.view(UNSIGNED[width])
    planes = [frozen(p) for p in planes]
    if form in PACKED:
        return _join_packed(planes, PACKED[form], _ground(base, width, "difference")[0], numbers)
    ground = _ground(base, width, form) if form in ("difference", "xor") else ()
    if (form, width) in _JOIN:
        _JOIN[form, width](*planes, *ground, numbers.view(ground[0].dtype) if ground else numbers)
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


def plane_count(width: int, form: Form) -> int:
    """How many planes a form has."""
    return width + 1 if form in PACKED else width


def plane_size(before: Sequence[Array], width: int, form: Form, nbytes: int) -> int:
    """The bytes of the plane behind the planes ``before``, of a block of ``nbytes``."""
    if form not in PACKED or len(before) < width - 2:
        return nbytes // width
    if len(before) == width - 2:
        return -(-(nbytes // width) // PACKED[form])
    return _apart(before[-1], PACKED[form]) if len(before) == width - 1 else before[-1].size


def _packed(planes: Sequence[Array], each: int) -> list[Array]:
    """Planes of a difference with the upper two packed, ``each`` numbers a byte."""
    *lower, low, high = planes
    small = np.zeros(-(-low.size // each) * each, np.uint8)
    rare_low, rare_high = np.empty((2, low.size + 1), np.uint8)
    count = packed.gather_rare(low, high, (1 << 8 // each) - 1, small, rare_low, rare_high)
    made = np.empty(small.size // each, np.uint8)
    (packed.pack2 if each == 2 else packed.pack4)(small, made)
    return [*lower, made, rare_low[:count], rare_high[:count]]


def _join_packed(planes: Sequence[Array], each: int, base: Array, numbers: Array) -> None:
    """The inverse, added to the base. NettError where the planes do not fit together."""
    *lower, small, low, high = planes
    if small.size != -(-numbers.size // each) or low.size != high.size:
        raise NettError(f"{small.size:,}, {low.size:,} and {high.size:,} bytes of packed numbers for {numbers.size:,}")
    words, numbers = _words(small), numbers.view(base.dtype)
    if numbers.itemsize == 2:
        found = packed.join2(words, each, low, high, base, numbers)
    elif numbers.itemsize == 4:
        found = packed.join4(lower[0], lower[1], words, each, low, high, base, numbers)
    else:
        upper = np.empty((2, numbers.size), np.uint8)
        found = packed.join_upper(words, each, low, high, *upper)
        from_planes([*lower, *upper], numbers.itemsize, "difference", base, numbers.view(np.uint8))
    if found != low.size:
        raise NettError(f"{low.size:,} numbers are stored apart in place of {_apart(small, each):,}")


def _apart(small: Array, each: int) -> int:
    """How many of the packed numbers are kept apart."""
    return int(packed.count_full(_words(small), each))


def _words(small: Array) -> Array:
    """Bytes as words of eight, with zeros behind the last."""
    if small.size % 8 or not small.flags.c_contiguous or small.ctypes.data % 8:
        whole = np.zeros(-(-small.size // 8) * 8, np.uint8)
        whole[: small.size] = small
        small = whole
    return frozen(small).view(np.uint64)


def _ground(base: Array | None, width: int, form: Form) -> tuple[Any, ...]:
    """The base's numbers, as the further argument that some kernels take."""
    assert base is not None
    kind = _NARROW.get(width) if form == "difference" else None
    return (frozen(base).view(kind or UNSIGNED[width]),)


def frozen(x: Array) -> Array:
    """A view that cannot be written to: kernels are compiled once, not for each mix of what can and what cannot."""
    view = x.view()
    view.flags.writeable = False
    return view
