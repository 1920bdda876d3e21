"""How the bytes of one object are coded: by themselves, or as a difference to a base where that is smaller."""

from __future__ import annotations

from nett.core.codec import Mode
from nett.store.draft import Piece
from nett.store.library import Library, Part
from nett.store.objects import DEEPEST, StoredObject
from nett.store.planning import WORTH, best_mode, sampled


def own_mode(piece: Piece) -> tuple[Mode, float]:
    """The mode that suits a piece coded by itself, and the bits a byte that its sample takes."""
    if not piece.tensor:
        return Mode.text(), 8.0
    return best_mode(sampled(piece.read, piece.nbytes), piece.width, piece.nbytes)


def coding(library: Library, piece: Piece, base: Part | None) -> tuple[Mode, StoredObject | None]:
    """The mode of a piece, and the object that it is a difference to, if there is one worth it."""
    own, bits = own_mode(piece)
    if base is None or not piece.tensor or base.nbytes != piece.nbytes:
        return own, None
    held = library.opened(base.object)
    if held.depth >= DEEPEST:
        return own, None
    raw = sampled(piece.read, piece.nbytes)
    ground = sampled(lambda at, count: library.read(base.object, at, count), base.nbytes)
    mode, less = best_mode(raw, piece.width, piece.nbytes, ground)
    return (mode, held) if mode.needs_base and less < WORTH * bits else (own, None)
