"""How the bytes of one object are coded: by themselves, or as a difference to a base where that is smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from nett.core.codec import Mode
from nett.core.dtypes import Array
from nett.store.draft import Piece
from nett.store.library import Library
from nett.store.objects import DEEPEST, Read, StoredObject
from nett.store.planning import WORTH, best_mode, sampled
from nett.store.records import Part


@final
@dataclass(frozen=True)
class Content:
    """The bytes of an object to be, read by a function. ``width``: of an element, 0 if unknown."""

    source: Read
    nbytes: int
    width: int
    tensor: bool

    def read(self, at: int, count: int) -> Array:
        return self.source(at, count)


Raw = Piece | Content


def own_mode(piece: Raw) -> tuple[Mode, float]:
    """The mode that suits a piece coded by itself, and the bits a byte that its sample takes."""
    if not piece.tensor:
        return Mode.text(), 8.0
    return best_mode(sampled(piece.read, piece.nbytes), piece.width, piece.nbytes)


def with_base(library: Library, piece: Raw, base: str, own: float) -> tuple[Mode, float] | None:
    """Mode and bits a byte as a difference to an object of the same size, or None where that is not worth it beside
    ``own`` bits."""
    ground = sampled(lambda at, count: library.objects.read(base, at, count), piece.nbytes)
    mode, bits = best_mode(sampled(piece.read, piece.nbytes), piece.width, piece.nbytes, ground)
    return (mode, bits) if mode.needs_base and bits < WORTH * own else None


def coding(library: Library, piece: Raw, base: Part | None) -> tuple[Mode, StoredObject | None]:
    """The mode of a piece, and the object that it is a difference to, if there is one worth it."""
    own, bits = own_mode(piece)
    if base is None or not piece.tensor or base.nbytes != piece.nbytes:
        return own, None
    held = library.objects.opened(base.object)
    if held.depth >= DEEPEST:
        return own, None
    better = with_base(library, piece, base.object, bits)
    return (better[0], held) if better is not None else (own, None)
