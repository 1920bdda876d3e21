"""What a store knows of a model: its files, as rows of segments of objects."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, final

import nett
from nett.core.errors import Refused


@final
@dataclass(frozen=True)
class Part:
    """One segment of a file: bytes ``offset:offset + nbytes`` of an object; ``name`` and ``width`` of the tensor,
    if it is one."""

    object: str
    nbytes: int
    offset: int = 0
    name: str | None = None
    width: int = 0


@final
@dataclass(frozen=True)
class StoredFile:
    """One file of a model; ``path`` is relative to the model's folder."""

    path: str
    nbytes: int
    sha256: str
    mode: int
    mtime_ns: int
    parts: tuple[Part, ...]


def tensors_of(files: Iterable[StoredFile]) -> dict[str, Part]:
    """The tensors of some files by name; of equal names in several files, the first."""
    found: dict[str, Part] = {}
    for file in files:
        for part in file.parts:
            if part.name is not None:
                found.setdefault(part.name, part)
    return found


@final
@dataclass(frozen=True)
class Model:
    """A model as the store knows it. ``single``: it was added as one file, not as a folder; ``base``: the model that
    its first unit is a difference to; ``bases``: unit -> unit (:mod:`nett.store.units`); ``seconds``: the limit on
    restoring it that it was added under."""

    name: str
    added: str
    source: str
    single: bool
    base: str | None
    files: tuple[StoredFile, ...]
    bases: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def nbytes(self) -> int:
        return sum(f.nbytes for f in self.files)

    @property
    def tensors(self) -> dict[str, Part]:
        """The tensors by name."""
        return tensors_of(self.files)

    @property
    def objects(self) -> set[str]:
        return {p.object for f in self.files for p in f.parts}

    def as_bytes(self) -> bytes:
        """The record; its last entry is the sha256 of all before it, so that a flipped bit is found."""
        body = json.dumps({"nett": nett.__version__, **asdict(self)}, separators=(",", ":")).encode()
        return body[:-1] + f',"sha256":"{hashlib.sha256(body).hexdigest()}"}}\n'.encode()

    @classmethod
    def from_bytes(cls, blob: bytes) -> Model:
        """ValueError where a bit of the record has changed."""
        record = json.loads(blob)
        told = record.get("sha256")  # not in the records of the first stores
        body = blob.rpartition(b',"sha256":"')[0] + b"}"
        if told is not None and told != hashlib.sha256(body).hexdigest():
            raise ValueError("its bytes are not those that were written")
        return cls.from_json(record)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Model:
        files = tuple(StoredFile(**{**f, "parts": tuple(Part(**p) for p in f["parts"])}) for f in record["files"])
        name, added, source = record["name"], record["added"], record["source"]
        more = record.get("bases", {}), record.get("seconds")  # not in the records of the first stores
        return cls(name, added, source, record["single"], record["base"], files, *more)


def checked_name(name: str) -> str:
    """A model's name as a path below ``models``: no absolute path, no ``..``, nothing hidden."""
    if not re.fullmatch(r"[\w@=+,.~ -]+(/[\w@=+,.~ -]+)*", name) or any(p.startswith(".") for p in name.split("/")):
        raise Refused(f"{name!r} cannot name a model", hint="Letters, digits, - _ . and / between parts: --name NAME")
    return name
