"""Writing safetensors as a stream: layout first, file preallocated, bytes in order, hash on the way.

Header keys are sorted and offsets fixed before the first byte, so the same tensors give the same file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, final

from nett.core.dtypes import Dtype
from nett.core.errors import NettError, Refused, UsageError

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


def byte_size(text: str) -> int:
    """``5GB``, ``200m``, ``1.5GiB`` as bytes."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]i?)?b?\s*", text.lower())
    size = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if size < 1:
        raise UsageError(f"{text!r} is not a size", hint="Write a number and a unit: 500MB, 5GB, 2GiB.")
    return size


@final
@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.bytes


@final
@dataclass(frozen=True)
class FileSpec:
    """One file to be written: the tensors in the order in which their bytes will come."""

    name: str  # relative to the output folder
    tensors: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]

    def header(self) -> bytes:
        entries: dict[str, Any] = {"__metadata__": dict(self.metadata)} if self.metadata else {}
        at = 0
        for spec in self.tensors:
            entries[spec.name] = {
                "dtype": spec.dtype.name,
                "shape": list(spec.shape),
                "data_offsets": [at, at + spec.nbytes],
            }
            at += spec.nbytes
        blob = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        blob += b" " * (-len(blob) % 8)  # tensors start at a multiple of 8
        return len(blob).to_bytes(8, "little") + blob

    @property
    def nbytes(self) -> int:
        return len(self.header()) + sum(t.nbytes for t in self.tensors)


def shard_plan(tensors: Sequence[TensorSpec], shard_bytes: int, stem: str = "model") -> list[FileSpec]:
    """Tensors in the given order into files of at most ``shard_bytes``, named as transformers names them."""
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in tensors:
        if groups[-1] and filled + spec.nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.nbytes
    metadata = {"format": "pt"}
    if len(groups) == 1:
        return [FileSpec(f"{stem}.safetensors", tuple(groups[0]), metadata)]
    count = len(groups)
    return [
        FileSpec(f"{stem}-{i:05d}-of-{count:05d}.safetensors", tuple(group), metadata)
        for i, group in enumerate(groups, start=1)
    ]


def index_json(files: Sequence[FileSpec]) -> bytes:
    """``model.safetensors.index.json`` of sharded output."""
    total = sum(t.nbytes for f in files for t in f.tensors)
    weight_map = {t.name: f.name for f in files for t in f.tensors}
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


@final
class OutputFile:
    """A file being written in order. ``position`` bytes are down; ``sha256`` covers exactly those."""

    def __init__(self, path: Path, nbytes: int, *, resume_at: int = 0, expect: str | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.nbytes, self.position = path, nbytes, 0
        self._hash = hashlib.sha256()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o644)
        try:
            if nbytes:
                os.posix_fallocate(self._fd, 0, nbytes)
            os.ftruncate(self._fd, nbytes)
            if resume_at:
                self._take_up(resume_at, expect)
        except OSError as error:
            self.close()
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise Refused(
                    f"needs {nbytes} bytes, which the disk does not have: {error.strerror}", where=path
                ) from error
            raise NettError(f"cannot be written: {error.strerror}", where=path) from error
        except BaseException:
            self.close()
            raise

    def _take_up(self, resume_at: int, expect: str | None) -> None:
        """Hash what an interrupted run left; NettError if it is not what the journal says."""
        block = memoryview(bytearray(1 << 22))
        while self.position < resume_at:
            got = os.preadv(self._fd, [block[: min(len(block), resume_at - self.position)]], self.position)
            if got == 0:
                raise NettError("is shorter than its journal says", where=self.path)
            self._hash.update(block[:got])
            self.position += got
        if expect is not None and self._hash.hexdigest() != expect:
            raise NettError("does not hold what its journal says", where=self.path)

    def write(self, data: Any) -> None:
        """Append bytes (anything with the buffer protocol)."""
        view = memoryview(data).cast("B")
        if self.position + len(view) > self.nbytes:
            raise NettError(f"more bytes than planned ({self.nbytes})", where=self.path)
        self._hash.update(view)
        while view:
            try:
                done = os.pwrite(self._fd, view, self.position)
            except OSError as error:
                hint = "Once that is mended, run the same command again to resume."
                raise NettError(f"cannot be written: {error.strerror}", where=self.path, hint=hint) from error
            self.position += done
            view = view[done:]

    def sync(self) -> None:
        """What was written survives a power cut."""
        os.fdatasync(self._fd)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
