"""A model of a store as a checkpoint: every command and ``nett.load`` read it where it lies, block by block."""

from __future__ import annotations

import json
import os
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, final

import numpy as np

from nett.core.checkpoint import Checkpoint, TensorInfo, safetensors
from nett.core.checkpoint.json_text import json_object
from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.sidefiles import is_side_file
from nett.store.library import Library
from nett.store.records import Model, Part, StoredFile


@final
class StoredCheckpoint(Checkpoint):
    """The safetensors files of a stored model, or of a folder ``inside`` it. Closing it closes the store."""

    format = "safetensors"

    def __init__(self, library: Library, model: Model, inside: str, files: Sequence[StoredFile]) -> None:
        self.path, self.library, self.model, self._inside = library.root / model.name / inside, library, model, inside
        self.files: tuple[Path, ...] = ()  # nothing that could be hashed lies there plainly
        self._lease = ExitStack()
        self._lease.enter_context(library.leased(model))
        self.tensors: dict[str, TensorInfo] = {}
        self._parts: dict[str, list[tuple[int, Part]]] = {}
        for file in files:
            starts = _starts(file)
            for info in _infos(library, file):
                if info.name in self.tensors:
                    raise Refused(f"tensor {info.name!r} also stands in another file", where=self.path / file.path)
                self.tensors[info.name] = replace(info, file=None, offset=-1)
                self._parts[info.name] = _within(file, starts, info.offset, info.nbytes)

    @property
    def name(self) -> str:
        return self.path.name

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        info = self.tensors[name]
        out = np.empty((info.size if stop is None else stop) - start, info.dtype.raw)
        self.read_into(name, start, out)
        return out

    def read_into(self, name: str, start: int, out: Array) -> None:
        target = out.view(np.uint8)
        begin = start * self.tensors[name].dtype.bytes
        end = begin + target.size
        at = 0  # of the tensor's bytes
        for offset, part in self._parts[name]:
            first, last = max(begin, at), min(end, at + part.nbytes)
            if first < last:
                self.library.objects.read(
                    part.object, offset + first - at, last - first, target[first - begin : last - begin]
                )
            at += part.nbytes

    def config(self) -> dict[str, Any] | None:
        content = self.side_file("config.json")
        try:
            loaded = json.loads(content) if content is not None else None
        except ValueError as error:
            raise Refused(f"config.json is not readable as JSON: {error}", where=self.path) from error
        return loaded if isinstance(loaded, dict) else None

    def side_file(self, name: str) -> bytes | None:
        """A file of the model that holds no weights, or None."""
        file = next((f for f in _folder(self.model, self._inside) if PurePosixPath(f.path).name == name), None)
        return None if file is None else file_bytes(self.library, file)

    def beside(self) -> dict[str, bytes]:
        return {
            name: file_bytes(self.library, file)
            for file in _folder(self.model, self._inside)
            if is_side_file(name := PurePosixPath(file.path).name)
        }

    def close(self) -> None:
        self._lease.close()
        self.library.close()


def open_stored(root: Path, name: str) -> StoredCheckpoint:
    """The model ``name`` of the store ``root``, or a folder in one: ``run/checkpoint-500``. Refused where there are no
    safetensors files."""
    library = Library.open(root)
    try:
        model, inside = library.find(name)
        files = _weights(library, _folder(model, inside), root / name)
        if not files:
            deeper = sorted({str(PurePosixPath(f.path).parent) for f in model.files if f.path.endswith(".safetensors")})
            raise Refused(
                "holds no safetensors files, the only ones that are read from a store without restoring them",
                where=root / name,
                hint=f"Name one of its folders: {root / model.name / deeper[0]}"
                if deeper
                else f"nett restore {root / model.name} --out DIR",
            )
        return StoredCheckpoint(library, model, inside, files)
    except BaseException:
        library.close()
        raise


def _folder(model: Model, inside: str) -> list[StoredFile]:
    """The files of a folder of a model, not of those below it."""
    return [f for f in model.files if PurePosixPath(f.path).parent == PurePosixPath(inside)]


def _weights(library: Library, files: Sequence[StoredFile], where: Path) -> list[StoredFile]:
    """The weight files of a folder, as :func:`safetensors.open_folder` chooses them."""
    by_name = {PurePosixPath(f.path).name: f for f in files}
    if (index := by_name.get(safetensors.INDEX)) is not None:
        held = json_object(file_bytes(library, index), where / index.path, "the index").get("weight_map")
        if not isinstance(held, dict) or not set(map(str, held.values())) <= by_name.keys():
            raise Refused("the index names files that are not there", where=where / index.path)
        return [by_name[n] for n in sorted(set(map(str, held.values())))]
    found = [n for n in by_name if n.endswith(".safetensors") and n != "adapter_model.safetensors"]
    return [by_name[n] for n in sorted(found)] if "model.safetensors" not in found else [by_name["model.safetensors"]]


def file_bytes(library: Library, file: StoredFile) -> bytes:
    """All bytes of a stored file."""
    return _bytes(library, file, 0, file.nbytes)


def _infos(library: Library, file: StoredFile) -> list[TensorInfo]:
    """The tensors of a stored safetensors file, from its header, which is checked as that of any file."""
    length = int.from_bytes(_bytes(library, file, 0, min(8, file.nbytes)), "little")
    if file.nbytes < 8 or 8 + length > file.nbytes:
        raise Refused(f"{file.path} is not a safetensors file", where=library.root)
    with tempfile.TemporaryDirectory(prefix="nett-") as folder:
        beside = Path(folder) / "header.safetensors"
        beside.write_bytes(_bytes(library, file, 0, 8 + length))
        os.truncate(beside, file.nbytes)  # sparse: a header is judged by the size of its file
        tensors, _ = safetensors.read_header(beside)
    return list(tensors.values())


def _starts(file: StoredFile) -> list[int]:
    """Where each part of a file begins."""
    return list(accumulate((part.nbytes for part in file.parts), initial=0))[:-1]


def _within(file: StoredFile, starts: Sequence[int], offset: int, nbytes: int) -> list[tuple[int, Part]]:
    """The parts of a file that hold ``offset:offset + nbytes``, each cut to that: (offset in its object, part)."""
    found = []
    for k in range(max(0, bisect_right(starts, offset) - 1), len(starts)):
        part, at = file.parts[k], starts[k]
        if at >= offset + nbytes:
            break
        first, last = max(offset, at), min(offset + nbytes, at + part.nbytes)
        if first < last:
            found.append((part.offset + first - at, replace(part, nbytes=last - first)))
    return found


def _bytes(library: Library, file: StoredFile, offset: int, nbytes: int) -> bytes:
    parts = _within(file, _starts(file), offset, nbytes)
    return b"".join(library.objects.read(part.object, at, part.nbytes).tobytes() for at, part in parts)
