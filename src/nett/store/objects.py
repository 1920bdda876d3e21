"""Objects: the bytes of one tensor, coded in blocks, in a safetensors file named by the sha256 of the bytes.

The file holds one U8 tensor, the coded planes of all blocks one behind the other; its metadata says how long each is,
which coder made it, a sum (xxh3) of each decoded block and, for a difference, the object that it is a difference to.
Any block is read without the others; of a difference, with the same block of its base.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint import safetensors
from nett.core.checkpoint.files import FileReader
from nett.core.checkpoint.writer import FileSpec, TensorSpec
from nett.core.codec import BLOCK, Coded, Mode, decode_block, encode_block
from nett.core.dtypes import DTYPES, Array
from nett.core.errors import NettError, ProofFailed, Refused
from nett.core.staging import sync_folder

VERSION = 3  # written only where an older one does not do: the sums of version 1 are crc32, 2 knows no grids
DEEPEST = 50  # differences to differences; bounds the memory of reading one block

Read = Callable[[int, int], Array]  # (offset, count) -> bytes


def object_path(root: Path, digest: str) -> Path:
    return root / "objects" / digest[:2] / digest


def blocks(nbytes: int) -> Iterator[tuple[int, int]]:
    """(offset, count) of each block of ``nbytes`` bytes."""
    return ((at, min(BLOCK, nbytes - at)) for at in range(0, nbytes, BLOCK))


@final
@dataclass(frozen=True)
class Written:
    """What writing an object came to."""

    digest: str
    stored: int  # bytes of the file


@final
class StoredObject:
    """One object, opened: read a block at a time, from several threads."""

    def __init__(self, root: Path, digest: str) -> None:
        self.digest, self.path = digest, object_path(root, digest)
        try:
            tensors, metadata = safetensors.read_header(self.path)
        except Refused as error:
            if self.path.is_file():
                raise
            raise ProofFailed(f"the object {digest} is missing", where=root, hint=f"nett store check {root}") from error
        try:
            version = int(metadata["nett_object"])
            if version > VERSION:
                raise Refused(
                    f"is an object of version {version}; this nett reads up to {VERSION}", where=self.path,
                    hint="It was written by a newer nett.",
                )  # fmt: skip
            self.nbytes, self.depth = int(metadata["bytes"]), int(metadata["depth"])
            self.mode, self.base = Mode.of(metadata["mode"]), metadata["base"] or None
            self._rows = _rows(json.loads(metadata["blocks"]), self.nbytes)
            self._check = "crc32" if version == 1 else "xxh3"
            planes = tensors["planes"]
        except (KeyError, ValueError, TypeError) as error:
            raise ProofFailed(f"is not an object of a store: {error}", where=self.path) from error
        at = planes.offset
        self._starts = []
        for _, lengths, _ in self._rows:
            self._starts.append(at)
            at += sum(lengths)
        self.end = at  # where the file ends
        if self.end > planes.offset + planes.nbytes:  # which is the size of the file
            raise ProofFailed("is shorter than its header says", where=self.path)
        self._reader = FileReader(self.path)

    def __len__(self) -> int:
        return len(self._rows)

    def coded(self, index: int, room: Array | None = None) -> Coded:
        """Block ``index`` as it lies in the file; read into ``room`` where that is large enough."""
        coders, lengths, checksum = self._rows[index]
        size = sum(lengths)
        target = room[:size] if room is not None and size <= room.size else np.empty(size, np.uint8)
        self._reader.read_into(target, self._starts[index])
        held = target.data
        planes, at = [], 0
        for length in lengths:
            planes.append(held[at : at + length])
            at += length
        return Coded(coders, planes, checksum, self._check)

    def decode(self, index: int, base: Array | None, out: Array, room: Array | None = None) -> None:
        """Fill ``out`` with block ``index``; ``base`` is the same block of the base, where there is one. ``room``: for
        the coded bytes."""
        try:
            decode_block(self.coded(index, room), self.mode, out, base)
        except (NettError, ArithmeticError, LookupError, TypeError, ValueError) as error:  # what damage comes to
            what = error.what if isinstance(error, NettError) else f"its planes do not fit together: {error}"
            raise ProofFailed(f"block {index} of {len(self)}: {what}", where=self.path) from error

    def close(self) -> None:
        self._reader.close()

    def __del__(self) -> None:
        if hasattr(self, "_reader"):
            self._reader.close()


def _rows(told: Any, nbytes: int) -> list[tuple[str, list[int], int]]:
    """(coders, lengths, sum) of each block of an object of ``nbytes`` bytes; ValueError where they are none."""
    found = [(coders, list(lengths), check) for coders, lengths, check in told]
    for coders, lengths, check in found:
        whole = all(type(n) is int and n >= 0 for n in lengths) and type(check) is int and isinstance(coders, str)
        if not whole:
            raise ValueError("a block is told by other than coders, lengths and a sum")
    if nbytes < 0 or len(found) != -(-nbytes // BLOCK):
        raise ValueError(f"{len(found)} blocks do not hold {nbytes} bytes")
    return found


def write_object(
    root: Path, digest: str, nbytes: int, mode: Mode, read: Read, base: StoredObject | None, base_read: Read | None
) -> Written:
    """Write the object ``digest`` whole or not at all, and read it back before it gets its name.

    Raises Refused where ``read`` does not give the bytes that ``digest`` names: the source changed meanwhile.
    """
    rows: list[list[Any]] = []
    seen = hashlib.sha256()
    temporary = root / "tmp" / uuid.uuid4().hex
    body = temporary.with_suffix(".body")
    try:
        with body.open("wb") as file:
            for at, count in blocks(nbytes):
                raw = read(at, count)
                seen.update(raw.data)
                ground = base_read(at, count) if base_read is not None else None
                coded = encode_block(raw, mode, ground)
                check = np.empty_like(raw)
                decode_block(coded, mode, check, ground)
                if not np.array_equal(check, raw):
                    raise NettError("a block does not decode to what was coded; this is a defect of nett", where=digest)
                rows.append([coded.coders, [len(p) for p in coded.planes], coded.checksum])
                for plane in coded.planes:
                    file.write(plane)
        if seen.hexdigest() != digest:
            raise Refused("changed while it was being read", where=digest)
        metadata = {
            "nett_object": str(VERSION if mode.form == "grid" else 2),
            "bytes": str(nbytes),
            "mode": str(mode),
            "base": base.digest if base is not None else "",
            "depth": str(base.depth + 1 if base is not None else 0),
            "blocks": json.dumps(rows, separators=(",", ":")),
        }
        size = body.stat().st_size
        spec = FileSpec(digest, (TensorSpec("planes", DTYPES["U8"], (size,)),), metadata)
        with temporary.open("xb") as file, body.open("rb") as source:
            file.write(spec.header())
            while block := source.read(1 << 22):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        final_path = object_path(root, digest)
        fresh = not final_path.parent.is_dir()
        final_path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, final_path)
        sync_folder(final_path.parent)
        if fresh:
            sync_folder(final_path.parent.parent)
        return Written(digest, spec.nbytes)
    finally:
        for leftover in (temporary, body):
            leftover.unlink(missing_ok=True)
