"""Writing the objects of a draft, as far as a store lacks them whole."""

from __future__ import annotations

from collections.abc import Mapping

from nett.core.errors import ProofFailed
from nett.core.progress import report
from nett.core.runner import Pool
from nett.store.checking import intact
from nett.store.coding import coding
from nett.store.draft import Draft
from nett.store.library import Library
from nett.store.objects import write_object
from nett.store.records import Part


def write_lacking(
    library: Library, draft: Draft, tensors: Mapping[str, Part], ground: Mapping[str, Part], pool: Pool
) -> int:
    """Write the objects of some tensors that the store lacks, as differences to ``ground``; returns their bytes."""
    names: dict[str, str] = {}
    for name, part in tensors.items():
        names.setdefault(part.object, name)

    def write(digest: str, ground: Part | None) -> int:
        piece = draft.pieces[digest]
        mode, held = coding(library, piece, ground)
        reads = (lambda at, count: library.objects.read(held.digest, at, count)) if held is not None else None
        stored = write_object(library.root, digest, piece.nbytes, mode, piece.read, held, reads).stored
        library.objects.forget(digest)
        return stored

    def one(digest: str) -> int:
        there = library.objects.has(digest)
        if there and intact(library, digest):
            return 0
        if there:  # damaged, and others may rest on it: it must not come to rest on them
            return write(digest, None)
        try:
            return write(digest, ground.get(names[digest]))
        except ProofFailed:  # the base is damaged
            return write(digest, None)

    written = 0
    for digest, stored in zip(names, pool.ordered(one, names), strict=True):
        written += stored
        report.step(draft.pieces[digest].nbytes)
    return written
