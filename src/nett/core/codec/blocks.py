"""One block of a tensor's bytes, coded plane by plane; each block can be decoded without the others."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from xxhash import xxh3_64_intdigest

from nett.core.codec import coders, grid
from nett.core.codec.modes import Mode
from nett.core.codec.planes import from_planes, plane_count, plane_size, to_planes
from nett.core.dtypes import Array
from nett.core.errors import NettError

BLOCK = 1 << 21  # bytes of a tensor that are coded together: planes stay in a core's cache, frames cost nothing
CHECKS: Mapping[str, Callable[[Any], int]] = {"xxh3": xxh3_64_intdigest, "crc32": zlib.crc32}  # the first is written


@final
@dataclass(frozen=True)
class Coded:
    """A coded block: the coder of each plane as one letter, what it made, and a sum of the decoded bytes. ``check``
    says which: ten times faster than a crc32, xxh3 leaves the time to the decoding."""

    coders: str
    planes: Sequence[Any]
    checksum: int
    check: str = "xxh3"

    @property
    def nbytes(self) -> int:
        return sum(len(p) for p in self.planes)


def encode_block(raw: Array, mode: Mode, base: Array | None = None) -> Coded:
    """Code up to ``BLOCK`` bytes; ``base`` holds as many where the mode needs them."""
    if mode.form == "grid":
        letters, planes = grid.encode(raw, mode.grid)
        return Coded(letters, planes, xxh3_64_intdigest(raw.data))
    if mode.form == "text":
        found = [coders.code_text(raw)]
    else:
        patient = mode.form in ("difference", "xor")
        found = [coders.code(p, patient=patient) for p in to_planes(raw, mode.width, mode.form, base)]
    return Coded("".join(c for c, _ in found), [p for _, p in found], xxh3_64_intdigest(raw.data))


def decode_block(coded: Coded, mode: Mode, out: Array, base: Array | None = None) -> None:
    """Fill ``out``, bytes as many as the block had; NettError if they are not what was coded."""
    if mode.form == "grid":
        grid.decode(coded.coders, coded.planes, mode.grid, out)
    else:
        _decode_planes(coded, mode, out, base)
    if CHECKS[coded.check](out.data) != coded.checksum:
        raise NettError("a block does not decode to what was stored: its bytes or its base's were changed")


def _decode_planes(coded: Coded, mode: Mode, out: Array, base: Array | None) -> None:
    if len(coded.coders) != plane_count(mode.width, mode.form) or out.size % mode.width:
        raise NettError(f"a block of {out.size} bytes in {len(coded.coders)} planes does not fit {mode}")
    planes: list[Array] = []
    for coder, data in zip(coded.coders, coded.planes, strict=True):
        planes.append(coders.decode(coder, data, plane_size(planes, mode.width, mode.form, out.size)))
    from_planes(planes, mode.width, mode.form, base, out)
