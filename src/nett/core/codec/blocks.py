"""One block of a tensor's bytes, coded plane by plane; each block can be decoded without the others."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.codec import coders
from nett.core.codec.modes import Mode
from nett.core.codec.planes import from_planes, to_planes
from nett.core.dtypes import Array
from nett.core.errors import NettError

BLOCK = 1 << 21  # bytes of a tensor that are coded together: planes stay in a core's cache, frames cost nothing


@final
@dataclass(frozen=True)
class Coded:
    """A coded block: the coder of each plane as one letter, what it made, and the crc32 of the decoded bytes."""

    coders: str
    planes: Sequence[Any]
    crc: int

    @property
    def nbytes(self) -> int:
        return sum(len(p) for p in self.planes)


def encode_block(raw: Array, mode: Mode, base: Array | None = None) -> Coded:
    """Code up to ``BLOCK`` bytes; ``base`` holds as many where the mode needs them."""
    if mode.form == "text":
        found = [coders.code_text(raw)]
    else:
        found = [coders.code(p, patient=mode.needs_base) for p in to_planes(raw, mode.width, mode.form, base)]
    return Coded("".join(c for c, _ in found), [p for _, p in found], zlib.crc32(raw.data))


def decode_block(coded: Coded, mode: Mode, out: Array, base: Array | None = None) -> None:
    """Fill ``out``, bytes as many as the block had; NettError if they are not what was coded."""
    if len(coded.coders) != mode.width or out.size % mode.width:
        raise NettError(f"a block of {out.size} bytes in {len(coded.coders)} planes does not fit {mode}")
    planes = np.empty((mode.width, out.size // mode.width), np.uint8)
    for coder, data, plane in zip(coded.coders, coded.planes, planes, strict=True):
        coders.decode(coder, data, plane)
    from_planes(planes, mode.width, mode.form, base, out)
    if zlib.crc32(out.data) != coded.crc:
        raise NettError("a block does not decode to what was stored: its bytes or its base's were changed")
