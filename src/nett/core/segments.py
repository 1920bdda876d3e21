"""A file as a row of segments: tensors by their bytes, and everything between them verbatim. Reads no pickle.

Any file is a row of segments without gaps. What is a tensor is told from the headers of safetensors, GGUF and zipped
torch files; other files, and headers that do not hold, are one segment of rest. Put together again, the segments
are the file, byte for byte: header order, padding and metadata included.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, final

from nett.core.checkpoint import safetensors
from nett.core.errors import NettError, Refused

if TYPE_CHECKING:
    from nett.core.checkpoint.gguf_header import GgufHeader

SMALL = 1 << 12  # bytes; what is smaller is kept with the rest, since an object of its own would cost more
ZIPPED = (".bin", ".pt", ".pth", ".ckpt")


@final
@dataclass(frozen=True)
class Segment:
    """Bytes ``offset:offset + nbytes`` of a file; ``name`` is the tensor's, None for rest. ``width``: bytes of an
    element where the header tells, else 0."""

    offset: int
    nbytes: int
    name: str | None = None
    width: int = 0


def segments_of(path: Path, size: int) -> list[Segment]:
    """The segments of a file of ``size`` bytes, in order, each byte in exactly one."""
    found: list[Segment] = []
    at = 0
    for tensor in sorted(_tensors(path), key=lambda s: (s.offset, -s.nbytes)):
        inside = tensor.offset >= at and tensor.offset + tensor.nbytes <= size  # of aliases, the first counts
        if tensor.nbytes < SMALL or not inside:
            continue
        if tensor.offset > at:
            found.append(Segment(at, tensor.offset - at))
        found.append(tensor)
        at = tensor.offset + tensor.nbytes
    if at < size or not found:
        found.append(Segment(at, size - at))
    return found


def _tensors(path: Path) -> list[Segment]:
    """The tensors that a header names; none where there is no header that holds."""
    try:
        return tensors_of_file(path, path.suffix)
    except (NettError, OSError):
        return []


def tensors_of_file(path: Path, suffix: str) -> list[Segment]:
    """The tensors of a file that is read as those that end in ``suffix`` are; none for an ending that is not known.
    Raises NettError where its header does not hold, OSError where it cannot be read."""
    try:
        if suffix == ".safetensors":
            infos, _ = safetensors.read_header(path)
            return [Segment(t.offset, t.nbytes, t.name, t.dtype.bytes) for t in infos.values()]
        if suffix == ".gguf":
            from nett.core.checkpoint.gguf_header import read_header

            return gguf_segments(read_header(path))
        if suffix in ZIPPED:
            return list(_of_zip(path))
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as error:
        raise Refused(f"is not a zipped torch file: {error}", where=path) from error
    return []


def gguf_segments(header: GgufHeader) -> list[Segment]:
    """A GGUF tensor reaches to the next one; padding behind it belongs to it, and comes back with it."""
    found = []
    ends = dict(pairwise([*sorted({t.offset for t in header.tensors}), header.size]))
    for tensor in header.tensors:
        width = {0: 4, 1: 2, 30: 2, 28: 8}.get(tensor.type, 1)  # F32, F16, BF16, F64; quantised blocks are bytes
        nbytes = ends[tensor.offset] - tensor.offset
        if width > 1:  # plain numbers end where they end, so that they are equal across formats
            count = 1
            for n in tensor.shape:
                count *= n
            nbytes = min(nbytes, count * width)
        found.append(Segment(tensor.offset, nbytes, tensor.name, width))
    return found


def _of_zip(path: Path) -> Iterator[Segment]:
    """Storages of a torch file: its records that are stored without compression. Nothing is unpickled."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED or "/data/" not in record.filename:
                continue
            file.seek(record.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            yield Segment(record.header_offset + 30 + name + extra, record.file_size, record.filename)
