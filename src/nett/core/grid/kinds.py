"""The grids that are looked for: those of llama.cpp's simple formats, and codes of 3 to 8 bits in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from nett.core.dtypes import Dtype

WORTH = 0.6  # of the float type's bits: a grid that needs more is no gain over coding the bytes
GROUPS = (16, 32, 64, 128, 256, 512, 1024)  # elements that share a scale


@final
@dataclass(frozen=True)
class Grid:
    """value = scale * code, or scale * code + minimum, in float32, and then rounded to the tensor's type.

    Codes are integers from ``low`` to ``high``. ``group`` elements of the flattened tensor share a scale (and a
    minimum, if ``minimum``), of type ``scale``; float16 is widened first, as the official dequantisations do.
    ``zeros``: there are zeros of both signs, as rounding to codes that stay floats leaves them; the code ``low - 1``
    stands for -0.0.
    """

    name: str
    group: int
    low: int
    high: int
    minimum: bool
    scale: Literal["F16", "F32"]
    zeros: bool = False

    @property
    def width(self) -> int:
        """Bits of a code."""
        return (self.high - self.low + self.zeros).bit_length()

    @property
    def bits(self) -> float:
        """Bits an element, packed: codes, and its share of the scale and the minimum."""
        width = 16 if self.scale == "F16" else 32
        return self.width + (1 + self.minimum) * width / self.group

    def __str__(self) -> str:
        return self.name


GGUF = {
    g.name: g
    for g in (
        Grid("Q4_0", 32, -8, 7, False, "F16"),
        Grid("Q4_1", 32, 0, 15, True, "F16"),
        Grid("Q5_0", 32, -16, 15, False, "F16"),
        Grid("Q5_1", 32, 0, 31, True, "F16"),
        Grid("Q8_0", 32, -128, 127, False, "F16"),
    )
}


def _plain(bits: int, group: int, zeros: bool = False) -> Grid:
    top = 1 << bits - 1
    low = 1 - top if zeros and bits == 8 else -top  # all codes within a byte
    return Grid(f"int{bits}g{group}{'z' * zeros}", group, low, top - 1, False, "F32", zeros)


def _affine(bits: int, group: int) -> Grid:
    return Grid(f"uint{bits}g{group}", group, 0, (1 << bits) - 1, True, "F32")


WIDEST = (_plain(8, 16), _plain(8, 16, True), _affine(5, 16), _affine(8, 64))  # what lies on another, lies on these


def grids(dtype: Dtype, size: int, row: int = 0) -> list[Grid]:
    """The grids that ``size`` elements of a type could lie on, fewest bits first; ``row``: the length of a row, which
    may share one scale. Groups of 16 and 32 with float32 scales hold the sub-blocks of K-quants."""
    groups = [g for g in dict.fromkeys((*GROUPS, row)) if g > 1 and size % g == 0]
    found = [g for g in GGUF.values() if size % g.group == 0]
    for group in groups:
        found += [_plain(bits, group, zeros) for bits in (3, 4, 6, 8) for zeros in (False, True)]
        found += [_affine(bits, group) for bits in (2, 4, 5)]
        found += [_affine(8, group)] if group >= 64 else []  # a short one fits numbers that lie on no grid
    return sorted((g for g in found if g.bits < WORTH * dtype.bits), key=lambda g: (g.bits, -g.group))


def named(name: str) -> Grid:
    """The grid of a name. ValueError where there is none."""
    if name in GGUF:
        return GGUF[name]
    kind, _, group = name.partition("g")
    if kind.startswith("int"):
        return _plain(int(kind[3:]), int(group.removesuffix("z")), group.endswith("z"))
    if kind.startswith("uint"):
        return _affine(int(kind[4:]), int(group))
    raise ValueError(f"unknown grid {name!r}")
