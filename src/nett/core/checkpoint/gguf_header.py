"""The header of a GGUF file, every count and length checked against the file's real size before it is believed.

Read here and not by the ``gguf`` package, whose reader maps the file and loops over array lengths as they stand:
a lying length keeps it busy for ever. Layout: magic, version, counts, key-value pairs, tensor table, padding, data
(the GGUF specification of the ggml project, versions 2 and 3, little-endian).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.jit import jit

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4  # ggml's own
_MAX_NAME = 65_535
_MAX_DEPTH = 4  # of arrays in arrays
_BLOCK = 1 << 20  # bytes read at once of an array of strings


@final
@dataclass(frozen=True)
class GgufTensor:
    """One line of the tensor table. ``shape`` slowest dimension first, as in Hugging Face files."""

    name: str
    shape: tuple[int, ...]
    type: int  # the number of the ggml type
    offset: int  # of the first byte, from the start of the file


@final
@dataclass(frozen=True)
class GgufHeader:
    """Scalars and strings of the metadata (arrays as their length), and the tensor table."""

    metadata: dict[str, Any]
    pairs: dict[str, tuple[int, int]]  # key -> where its key, type and value begin and end in the file
    tensors: tuple[GgufTensor, ...]
    size: int  # of the file in bytes


@jit
def _strings(block: Array, most: int) -> tuple[int, int]:
    """(bytes, number) of the whole strings that a block begins with, at most ``most``."""
    at: Any = 0
    count = 0
    while count < most and at + 8 <= block.size:
        length = np.uint64(0)
        for k in range(8):
            length |= np.uint64(block[at + k]) << np.uint64(8 * k)
        if length > np.uint64(block.size - at - 8):
            break
        at += 8 + np.int64(length)
        count += 1
    return at, count


@final
class _Walk:
    """Reads forward and refuses to run past the end."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file, self.path, self.size, self.at = file, path, size, 0

    def refuse(self, what: str) -> NoReturn:
        raise Refused(f"{what} (at byte {self.at}; truncated, or not a GGUF file)", where=self.path)

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            self.refuse(f"{what} needs {count} bytes, but {self.size - self.at} are left of the file's {self.size}")

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        blob = self.file.read(count)
        if len(blob) < count:
            self.refuse(f"{what} ends early: the file changed while being read")
        self.at += count
        return blob

    def skip(self, count: int, what: str) -> None:
        self.need(count, what)
        self.file.seek(count, 1)
        self.at += count

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def text(self, what: str, limit: int | None = None) -> str:
        length = self.number("Q", f"the length of {what}")
        if limit is not None and length > limit:
            self.refuse(f"{what} is said to be {length} bytes long, at most {limit} are allowed")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(f"{what} is not UTF-8")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], what)
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY or depth > _MAX_DEPTH:
            self.refuse(
                f"{what} is of the unknown metadata type {kind}" if kind != _ARRAY else f"{what} nests too deep"
            )
        element, count = self.number("I", what), self.number("Q", what)
        if element in _SCALARS:
            self.skip(count * struct.calcsize("<" + _SCALARS[element]), what)
            return count
        self.need(count * 8, what)  # a string has at least its length, an array at least twelve bytes
        if element == _STRING:
            self.skip_strings(count, what)
            return count
        for _ in range(count):
            self.value(element, what, depth + 1)
        return count

    def skip_strings(self, count: int, what: str) -> None:
        """Past ``count`` strings, a block of the file at a time: vocabularies have hundreds of thousands of them."""
        while count:
            block = self.file.read(min(_BLOCK, self.size - self.at))
            at, skipped = _strings(np.frombuffer(block, np.uint8), count)
            count -= skipped
            self.file.seek(self.at + at)
            self.at += at
            if not at:  # longer than a block, or than the file
                self.skip(self.number("Q", what), what)
                count -= 1


def read_header(path: Path) -> GgufHeader:
    """The header of ``path``; :class:`Refused` names the first thing wrong with it."""
    try:
        with path.open("rb") as file:
            return _read(_Walk(file, path, path.stat().st_size))
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}", where=path) from error


def _read(walk: _Walk) -> GgufHeader:
    if walk.take(4, "the magic number") != b"GGUF":
        walk.refuse("does not begin with 'GGUF'")
    version = walk.number("I", "the version")
    if version not in (2, 3):
        big = version and version & 0xFFFF == 0
        walk.refuse("is big-endian, which nett does not read" if big else f"has GGUF version {version}, known: 2 and 3")
    tensor_count, pair_count = walk.number("Q", "the tensor count"), walk.number("Q", "the metadata count")
    walk.need(tensor_count * 32 + pair_count * 13, f"a header of {tensor_count} tensors and {pair_count} keys")
    metadata: dict[str, Any] = {}
    pairs: dict[str, tuple[int, int]] = {}
    for _ in range(pair_count):
        begin = walk.at
        key = walk.text("a metadata key", _MAX_NAME)
        if key in metadata:
            walk.refuse(f"the metadata key {key!r} stands twice")
        metadata[key] = walk.value(walk.number("I", f"the type of {key!r}"), f"the metadata value {key!r}")
        pairs[key] = (begin, walk.at)
    table = [_entry(walk) for _ in range(tensor_count)]
    align = metadata.get("general.alignment", 32)
    if not isinstance(align, int) or isinstance(align, bool) or align < 1 or align & (align - 1):
        walk.refuse(f"general.alignment is {align!r}, not a power of two")
    start = -(-walk.at // align) * align
    names = {entry.name for entry in table}
    if len(names) < len(table):
        walk.refuse("the same tensor stands twice in the table")
    for entry in table:
        if entry.offset % align or start + entry.offset > walk.size:
            walk.refuse(f"tensor {entry.name!r} is said to begin at byte {entry.offset} of the data")
    tensors = tuple(GgufTensor(t.name, t.shape, t.type, start + t.offset) for t in table)
    return GgufHeader(metadata, pairs, tensors, walk.size)


def _entry(walk: _Walk) -> GgufTensor:
    name = walk.text("a tensor's name", _MAX_NAME)
    dims = walk.number("I", f"the dimensions of {name!r}")
    if dims > _MAX_DIMS:
        walk.refuse(f"tensor {name!r} is said to have {dims} dimensions, at most {_MAX_DIMS} are allowed")
    shape = struct.unpack(f"<{dims}Q", walk.take(8 * dims, f"the shape of {name!r}"))[::-1]
    if prod(shape) > 1 << 62:
        walk.refuse(f"tensor {name!r} is said to have the shape {shape}")
    return GgufTensor(
        name, shape, walk.number("I", f"the type of {name!r}"), walk.number("Q", f"the offset of {name!r}")
    )
