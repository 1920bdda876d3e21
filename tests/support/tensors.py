"""safetensors written and read by plain NumPy, so that nett's own reader and writer are not their own judges."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_PLAIN = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def to_bits(values: Array, dtype: str) -> bytes:
    """The little-endian bytes of ``values`` in a safetensors type; bfloat16 rounds to nearest, ties to even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(values).astype(_PLAIN[dtype]).tobytes()


def from_bits(blob: bytes, dtype: str, shape: Sequence[int]) -> Array:
    """The inverse of :func:`to_bits`: bfloat16 as float32, everything else as NumPy has it."""
    if dtype == "BF16":
        bits = np.frombuffer(blob, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    return np.frombuffer(blob, _PLAIN[dtype]).reshape(shape).copy()


def rounded(values: Array, dtype: str) -> Array:
    """What is left of ``values`` after storing them in ``dtype``."""
    return from_bits(to_bits(values, dtype), dtype, values.shape)


def write_tensors(
    path: Path, tensors: Mapping[str, Array], dtype: str | Mapping[str, str] = "F32", **metadata: str
) -> Path:
    """One safetensors file. ``dtype``: one for all floats (others keep their own), or one for each name."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    blobs, at = [], 0
    for name, values in tensors.items():
        own = dtype if isinstance(dtype, str) else dtype[name]
        if values.dtype.kind != "f":
            own = {"i8": "I64", "i4": "I32", "i1": "I8", "u1": "U8", "b1": "BOOL"}[values.dtype.str[1:]]
        blob = to_bits(values, own)
        header[name] = {"dtype": own, "shape": list(values.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    write_raw(path, header, b"".join(blobs))
    return path


def write_raw(path: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    """A file with any header (text, or something for JSON), any claimed header length and any data."""
    blob = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(blob) if length is None else length) + blob + data)
    return path


def header_of(path: Path) -> dict[str, Any]:
    """The header of a file as it stands there."""
    blob = path.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    found: dict[str, Any] = json.loads(blob[8 : 8 + length])
    return found


def read_tensors(path: Path) -> dict[str, Array]:
    """All tensors of a file, or of a folder's ``*.safetensors`` (shards together)."""
    if path.is_dir():
        together: dict[str, Array] = {}
        for file in sorted(path.glob("*.safetensors")):
            together |= read_tensors(file)
        return together
    blob = path.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    found = {}
    for name, entry in json.loads(blob[8 : 8 + length]).items():
        if name != "__metadata__":
            start, stop = (8 + length + n for n in entry["data_offsets"])
            found[name] = from_bits(blob[start:stop], entry["dtype"], entry["shape"])
    return found


def flat(tensors: Mapping[str, Array]) -> Array:
    """All floats as one vector, by sorted name: the authors' way of seeing a model."""
    return np.concatenate([tensors[n].ravel() for n in sorted(tensors) if tensors[n].dtype.kind == "f"])


def unflat(vector: Array, like: Mapping[str, Array]) -> dict[str, Array]:
    """The inverse of :func:`flat`; what is no float is taken from ``like``."""
    made, at = {}, 0
    for name in sorted(like):
        if like[name].dtype.kind == "f":
            size = prod(like[name].shape)
            made[name] = vector[at : at + size].reshape(like[name].shape)
            at += size
        else:
            made[name] = like[name]
    return made
