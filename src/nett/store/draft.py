"""A model on its way into the store: its files read once, every tensor known by its hash."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np

from nett.core.codec import BLOCK
from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.segments import segments_of
from nett.store.records import Part, StoredFile
from nett.store.units import Unit, units_of

SKIPPED = (".git", ".nett-link", "__pycache__")  # folders that are no part of a model


@final
@dataclass(frozen=True)
class Piece:
    """Bytes that will be an object: runs (offset in the file, count) of one file, one behind the other."""

    path: Path
    runs: tuple[tuple[int, int], ...]
    width: int  # of an element; 0 if unknown
    tensor: bool

    @property
    def nbytes(self) -> int:
        return sum(count for _, count in self.runs)

    def read(self, at: int, count: int) -> Array:
        """Bytes ``at:at + count`` of the piece; Refused where the file has become shorter."""
        out = np.empty(count, np.uint8)
        done = 0
        with self.path.open("rb", buffering=0) as file:
            for offset, length in self.runs:
                if at < length and done < count:
                    take = min(length - at, count - done)
                    file.seek(offset + at)
                    view = out[done : done + take].data
                    while view:
                        got = file.readinto(view)
                        if not got:
                            raise Refused("became shorter while it was being read", where=self.path)
                        view = view[got:]
                    done, at = done + take, 0
                else:
                    at -= length
        return out


@final
@dataclass
class Draft:
    """One model: its files as the store will know them, and for each object where its bytes lie now."""

    name: str
    source: Path
    single: bool
    files: list[StoredFile] = field(default_factory=list)
    pieces: dict[str, Piece] = field(default_factory=dict)  # by digest

    @property
    def units(self) -> list[Unit]:
        return units_of(self.name, self.files)

    @property
    def nbytes(self) -> int:
        return sum(f.nbytes for f in self.files)


def files_of(source: Path) -> Iterator[Path]:
    """The files of a folder (a link to a file counts as one), or the file. Refused where something could not be given
    back as it is: a link to a folder or to nothing, a pipe, a folder that cannot be read."""
    if source.is_file():
        yield source
        return

    def unreadable(error: OSError) -> None:
        raise Refused(f"cannot be read: {error.strerror}", where=error.filename)

    for folder, folders, files in os.walk(source, onerror=unreadable):
        folders[:] = sorted(f for f in folders if f not in SKIPPED)
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                raise Refused(
                    "is a link to a folder", where=os.path.join(folder, name), hint="Add that folder by itself."
                )
        for name in sorted(files):
            path = Path(folder) / name
            if path.is_file():
                yield path
            elif path.is_symlink():
                raise Refused("is a link to nothing (an interrupted download?)", where=path)
            else:
                raise Refused("is neither a file nor a folder", where=path)


def read_file(path: Path, name: str) -> tuple[StoredFile, dict[str, Piece]]:
    """Hash a file and each of its segments in one reading. Refused if it changes meanwhile."""
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise Refused("is not a regular file", where=path)
            segments = segments_of(path, before.st_size)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            whole, rest = hashlib.sha256(), hashlib.sha256()
            digests = []
            block = memoryview(bytearray(BLOCK))
            for segment in segments:
                own = rest if segment.name is None else hashlib.sha256()
                left = segment.nbytes
                while left:
                    got = file.readinto(block[: min(left, BLOCK)])
                    if not got:
                        raise Refused("became shorter while it was being read", where=path)
                    own.update(block[:got])
                    whole.update(block[:got])
                    left -= got
                digests.append(own)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}", where=path) from error
    if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
        raise Refused("changed while it was being read", where=path, hint="Add it again when nothing writes to it.")
    remains = rest.hexdigest()
    parts: list[Part] = []
    pieces: dict[str, Piece] = {}
    at = 0
    for segment, digest in zip(segments, digests, strict=True):
        if segment.name is None:
            parts.append(Part(remains, segment.nbytes, at))
            at += segment.nbytes
        else:
            parts.append(Part(digest.hexdigest(), segment.nbytes, 0, segment.name, segment.width))
            piece = Piece(path, ((segment.offset, segment.nbytes),), segment.width, True)
            pieces.setdefault(digest.hexdigest(), piece)
    runs = tuple((s.offset, s.nbytes) for s in segments if s.name is None)
    if runs:
        pieces.setdefault(remains, Piece(path, runs, 1, False))
    mode = stat.S_IMODE(before.st_mode)
    stored = StoredFile(name, before.st_size, whole.hexdigest(), mode, before.st_mtime_ns, tuple(parts))
    return stored, pieces
