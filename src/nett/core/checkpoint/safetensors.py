"""safetensors: one file, or shards with an index. The header is checked before anything believes it.

The format (8 bytes of header length, a JSON header, then the tensors' bytes) is read here and not through the
library, because the library hands out whole tensors and we stream ranges of bfloat16 and float8 through NumPy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint.base import Checkpoint, TensorInfo
from nett.core.checkpoint.files import FileReader
from nett.core.checkpoint.json_text import json_object, read_json_object
from nett.core.dtypes import DTYPES, Array
from nett.core.errors import Refused

MAX_HEADER = 100_000_000  # the library's own limit
_MOST = 1 << 48  # elements in one dimension: beside a 0, a lie would cost no bytes
INDEX = "model.safetensors.index.json"


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the metadata of one file, every number checked against the file's real size."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8:
                raise Refused(f"has {size} bytes: too short to be a safetensors file (truncated download?)", where=path)
            if length > MAX_HEADER or 8 + length > size:
                raise Refused(
                    f"says that its header has {length} bytes, but the file has {size}"
                    " (truncated, or not a safetensors file)",
                    where=path,
                )
            blob = file.read(length)
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}", where=path) from error
    header = json_object(blob, path, "its header")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Refused("its __metadata__ is not an object of strings", where=path)
    start = 8 + length
    tensors = {name: _tensor(path, name, entry, start, size) for name, entry in header.items()}
    _no_holes(path, tensors.values(), start, size)
    return tensors, metadata


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> TensorInfo:
    def wrong(what: str) -> Refused:
        return Refused(f"tensor {name!r}: {what}", where=path)

    if not isinstance(entry, dict):
        raise wrong("its header entry is not an object")
    named = entry.get("dtype")
    dtype = DTYPES.get(named) if isinstance(named, str) else None
    if dtype is None:
        raise wrong(f"dtype {entry.get('dtype')!r} is not supported; known: {', '.join(DTYPES)}")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise wrong(f"shape {shape!r} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise wrong(f"data_offsets {offsets!r} are not two numbers")
    begin, end = offsets
    if not 0 <= begin <= end or start + end > size:
        raise wrong(f"data_offsets {offsets} lie outside the file, which has {size - start} bytes of data")
    info = TensorInfo(name, dtype, tuple(shape), dtype.name, end - begin, path, start + begin)
    if info.size * dtype.bytes != end - begin:
        raise wrong(
            f"shape {shape} of {dtype.name} needs {info.size * dtype.bytes} bytes, the header gives {end - begin}"
        )
    if any(n >= _MOST for n in shape):
        raise wrong(f"shape {shape} is larger than any memory")
    return info


def _no_holes(path: Path, tensors: Iterable[TensorInfo], start: int, size: int) -> None:
    at = start
    for info in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if info.offset != at:
            what = "overlaps the one before it" if info.offset < at else "leaves a hole before it"
            raise Refused(f"tensor {info.name!r} {what} (byte {info.offset}, expected {at})", where=path)
        at += info.nbytes
    if at != size:
        raise Refused(f"has {size - at} bytes that belong to no tensor", where=path)


def shards_of(index: Path) -> dict[str, list[str]]:
    """Shard file name -> the tensors that the index puts there. Names that leave the folder are refused."""
    weight_map = read_json_object(index, "the index, which should hold a 'weight_map',").get("weight_map")
    if not isinstance(weight_map, dict):
        raise Refused("is not a checkpoint index: it has no 'weight_map' object", where=index)
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise Refused(
                f"tensor {name!r} is said to lie in {shard!r}, which is not a plain file name in this folder",
                where=index,
            )
        shards.setdefault(shard, []).append(name)
    for shard in shards:
        if not os.path.isfile(index.parent / shard):  # unlike Path's, false for names that no file can have
            raise Refused(f"names the shard {shard!r}, which is not in the folder (partial download?)", where=index)
    return shards


def check_against_index(index: Path, shards: Mapping[str, Sequence[str]], found: Mapping[str, Iterable[str]]) -> None:
    """Every tensor lies where the index says."""
    for shard, names in shards.items():
        missing = sorted(set(names) - set(found[shard]))
        if missing:
            raise Refused(f"says that {missing[0]!r} lies in {shard!r}, but it does not", where=index)


@final
class SafetensorsCheckpoint(Checkpoint):
    """One or several safetensors files as one checkpoint."""

    format = "safetensors"

    def __init__(self, path: Path, files: Sequence[Path], index: Path | None = None) -> None:
        self.path = path
        self.files = tuple(files)
        self.metadata: dict[str, str] = {}
        tensors: dict[str, TensorInfo] = {}
        by_file: dict[str, list[str]] = {}
        for file in self.files:
            found, metadata = read_header(file)
            for name in found.keys() & tensors.keys():
                raise Refused(f"tensor {name!r} also stands in {tensors[name].file}", where=file)
            tensors |= found
            by_file[file.name] = list(found)
            self.metadata |= metadata
        if index is not None:
            check_against_index(index, shards_of(index), by_file)
        self.tensors = tensors
        self._readers = {file: FileReader(file) for file in self.files}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        info = self.tensors[name]
        stop = info.size if stop is None else stop
        assert info.file is not None
        return self._readers[info.file].read(info.offset + start * info.dtype.bytes, stop - start, info.dtype.raw)

    def read_into(self, name: str, start: int, out: Array) -> None:
        info = self.tensors[name]
        assert info.file is not None
        self._readers[info.file].read_into(out.view(np.uint8), info.offset + start * info.dtype.bytes)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()


def open_folder(path: Path) -> SafetensorsCheckpoint | None:
    """The safetensors checkpoint of a folder, or None where it holds none."""
    index = path / INDEX
    if index.is_file():
        return SafetensorsCheckpoint(path, [path / name for name in sorted(shards_of(index))], index)
    files = sorted(f for f in path.glob("*.safetensors") if f.name != "adapter_model.safetensors" and os.path.isfile(f))
    whole = path / "model.safetensors"
    if whole in files:
        files = [whole]
    return SafetensorsCheckpoint(path, files) if files else None
