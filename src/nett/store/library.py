"""The store: a folder of objects and of models that are made of them.

    STORE/nett.json            what makes it a store: format version; ``nett restore``, ``verify`` and ``load`` look here
    STORE/objects/ab/<sha256>  tensors and rest, coded (:mod:`nett.store.objects`)
    STORE/models/<name>.json   one model: its files as rows of segments; the moment that it appears, the model is there
    STORE/log.jsonl            what was done, a line each
    STORE/lock, tmp/, leases/, quarantine/

Everything that is written is complete and synced before it gets its name, objects before the model that needs them,
so a kill at any moment leaves a store in which every model is whole. There is one writer at a time, and readers
need no lock: what they have open stays readable, and a lease keeps the rest from garbage collection.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import re
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

import nett
from nett.core import receipt as receipts
from nett.core.codec import BLOCK
from nett.core.dtypes import Array
from nett.core.errors import NettError, ProofFailed, Refused, UsageError, did_you_mean
from nett.core.staging import sync_folder
from nett.store.objects import DEEPEST, StoredObject, object_path

FORMAT = 1
_OPEN = 64  # objects that are held open


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


@final
class Library:
    """An open store; see :meth:`open` and :meth:`create`. Reading is safe from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: dict[str, StoredObject] = {}
        self._lock = threading.Lock()
        self._own = threading.local()  # scratch of each thread

    @classmethod
    def open(cls, root: Path) -> Library:
        """The store in a folder; Refused where there is none, or one of a newer format."""
        made = "Make one: nett store add MODEL --into STORE"
        if not (root / receipts.NAME).is_file():
            what = f"is not a store (it holds no {receipts.NAME})" if root.exists() else "there is no such store"
            raise Refused(what, where=root, hint=made)
        found = receipts.read_receipt(root)
        if found["room"] != "store" or "store_format" not in found:
            raise Refused("is not a store", where=root, hint=made)
        if type(found["store_format"]) is not int or found["store_format"] < 1:
            raise ProofFailed(
                f"is not a receipt of a store: store_format {found['store_format']!r}", where=root / receipts.NAME
            )
        if found["store_format"] > FORMAT:
            raise Refused(
                f"is a store of format {found['store_format']}; this nett {nett.__version__} reads up to {FORMAT}",
                where=root,
            )
        return cls(root)

    @classmethod
    def create(cls, root: Path) -> Library:
        """The store in a folder, made there if the folder is empty or not there yet."""
        if (root / receipts.NAME).is_file():
            return cls.open(root)
        if root.exists() and (not root.is_dir() or any(p.name not in _FURNITURE for p in root.iterdir())):
            raise Refused("is not a store, and not an empty folder in which to make one", where=root)
        try:
            for name in ("objects", "models", "tmp", "leases"):
                make_folders(root / name)
            record = {
                "nett": nett.__version__, "schema": receipts.SCHEMA, "room": "store", "method": "add",
                "store_format": FORMAT, "inputs": [], "outputs": [], "edges": [], "checks": [],
            }  # fmt: skip
            write_whole(root / receipts.NAME, receipts.as_bytes(record), root / "tmp")
        except OSError as error:
            raise Refused(f"cannot be written: {error.strerror}", where=root) from error
        return cls(root)

    # -- models -------------------------------------------------------------------------------------------------

    def _file(self, name: str) -> Path:
        return self.root / "models" / f"{name}.json"

    def names(self) -> list[str]:
        models = self.root / "models"
        return sorted(str(f.relative_to(models))[: -len(".json")] for f in models.rglob("*.json"))

    def model(self, name: str) -> Model:
        """Refused, with the nearest names, where the store has no such model."""
        file = self._file(checked_name(name))
        try:
            return Model.from_bytes(file.read_bytes())
        except FileNotFoundError:
            raise Refused(
                f"holds no model {name!r}.{did_you_mean(name, self.names())}", where=self.root, hint="nett store ls"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            hint = f"nett store remove {self.root / name}, then nett store add it again."
            raise ProofFailed(f"is not readable: {error}", where=file, hint=hint) from error

    def find(self, name: str) -> tuple[Model, str]:
        """The model of that name; or, where a folder of a model is named, that model and the folder in it."""
        parts = name.split("/")
        for cut in range(len(parts) - 1, 0, -1):
            outer, inside = "/".join(parts[:cut]), "/".join(parts[cut:])
            if not self._file(checked_name(name)).is_file() and self._file(outer).is_file():
                model = self.model(outer)
                if any(f.path.startswith(f"{inside}/") for f in model.files):
                    return model, inside
        return self.model(name), ""

    def models(self) -> Iterator[Model]:
        for name in self.names():
            yield self.model(name)

    def put(self, model: Model) -> None:
        """The moment at which a model is in the store. All its objects are there by now."""
        for digest in model.objects & set(os.listdir(self.root / "unneeded")) if self._collected() else ():
            (self.root / "unneeded" / digest).unlink()  # its days of grace begin anew
        sync_folder(self.root / "objects")  # a killed run may have made folders there and not come to this
        self.write(model)
        self.log("add", model=model.name, bytes=model.nbytes, base=model.base)

    def _collected(self) -> bool:
        return (self.root / "unneeded").is_dir()

    def write(self, model: Model) -> None:
        """A model's record, in the place of the one that is there."""
        write_whole(self._file(model.name), model.as_bytes(), self.root / "tmp")

    def drop(self, name: str) -> int | None:
        """Take a model out, also one whose record is not readable; its objects stay until they are collected.
        Returns its bytes, if they are known."""
        nbytes: int | None = None
        with contextlib.suppress(ProofFailed):
            nbytes = self.model(name).nbytes
        self._file(name).unlink()
        sync_folder(self._file(name).parent)
        self.log("remove", model=name, bytes=nbytes)
        return nbytes

    def log(self, what: str, **more: Any) -> None:
        """A line of the log; best effort, since nothing depends on it."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError), (self.root / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now, "what": what, **more}) + "\n")

    # -- objects ------------------------------------------------------------------------------------------------

    def has(self, digest: str) -> bool:
        return object_path(self.root, digest).is_file()

    def opened(self, digest: str) -> StoredObject:
        with self._lock:
            found = self._open.get(digest)
            if found is None:
                if len(self._open) >= _OPEN:  # those that readers are at stay alive through their references
                    self._open.pop(next(iter(self._open)))
                found = self._open[digest] = StoredObject(self.root, digest)
            return found

    def forget(self, digest: str) -> None:
        """Open an object anew when it is next asked for: it has been written anew."""
        with self._lock:
            self._open.pop(digest, None)

    def is_whole(self, digest: str) -> bool:
        """Whether an object and all that it rests on are there, by their headers."""
        try:
            self.chain(digest)
        except NettError:
            return False
        return True

    def chain(self, digest: str) -> list[StoredObject]:
        """An object and what it rests on, one behind the other. ProofFailed where one is missing or does not fit."""
        for _ in range(2):
            try:
                return self._chain(digest)
            except ProofFailed as error:  # it was open while collection wrote it anew and took its old base away?
                wrong = error
                self.forget(digest)
        raise wrong

    def _chain(self, digest: str) -> list[StoredObject]:
        found = [self.opened(digest)]
        while found[-1].mode.needs_base:
            try:
                base = self.opened(str(found[-1].base))
            except ProofFailed:
                self.forget(found[-1].digest)
                raise
            if base.nbytes != found[0].nbytes:
                raise ProofFailed("rests on a base of another size", where=found[0].path)
            if len(found) > 2 * DEEPEST:
                raise ProofFailed("rests on itself, over others", where=found[0].path)
            found.append(base)
        return found

    def block(self, digest: str, index: int, out: Array | None = None) -> Array:
        """Block ``index`` of an object, decoded, with all the bases that it rests on; into ``out`` if that is given."""
        chain = self.chain(digest)
        count = min(BLOCK, chain[0].nbytes - index * BLOCK)
        if out is None:
            out = np.empty(count, np.uint8)
        base: Array | None = None
        for depth in range(len(chain) - 1, -1, -1):
            found = self._scratch(depth % 2)[:count] if depth else out
            chain[depth].decode(index, base, found)
            base = found
        return out

    def _scratch(self, which: int) -> Array:
        """One of two blocks that a thread decodes bases into: a new one each time would cost more than to fill it."""
        if not hasattr(self._own, "blocks"):
            self._own.blocks = np.empty((2, BLOCK), np.uint8)
        return self._own.blocks[which]  # type: ignore[no-any-return]

    def read(self, digest: str, offset: int, count: int, out: Array | None = None) -> Array:
        """Bytes ``offset:offset + count`` of what an object holds; into ``out`` if that is given."""
        if out is None:
            out = np.empty(count, np.uint8)
        whole = self.opened(digest).nbytes
        done = 0
        while done < count:
            index, inside = divmod(offset + done, BLOCK)
            take = min(count - done, min(BLOCK, whole - index * BLOCK) - inside)
            if take <= 0:
                raise ProofFailed(f"holds {whole:,} bytes, {offset + count:,} are needed", where=digest)
            if inside == 0 and take == min(BLOCK, whole - index * BLOCK):
                self.block(digest, index, out[done : done + take])
            else:
                out[done : done + take] = self.block(digest, index)[inside : inside + take]
            done += take
        return out

    def close(self) -> None:
        for stored in self._open.values():
            stored.close()
        self._open.clear()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- locks --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """The one writer; Refused where there is another. The kernel lets go of the lock when the process dies."""
        try:
            fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Refused(f"cannot be written: {error.strerror}", where=self.root) from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Refused("another nett is writing to this store right now", where=self.root) from error
            except OSError as error:  # without the lock, nobody would keep a second writer out
                raise Refused(
                    f"cannot be locked: {error.strerror}",
                    where=self.root,
                    hint="Keep the store where flock works: a local file system, or NFS with its lock service.",
                ) from error
            try:
                yield
            except OSError as error:
                raise NettError(
                    f"{error.strerror or error}",
                    where=error.filename or self.root,
                    hint="What was in the store is whole; the same command again ends the work.",
                ) from error
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def leased(self, model: Model) -> Iterator[None]:
        """While this lasts, garbage collection leaves the model's objects alone, even if the model is removed."""
        lease = self.root / "leases" / uuid.uuid4().hex
        hidden = lease.with_name(f".{lease.name}")  # until it is locked and whole; collection leaves it alone so long
        try:
            fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError:  # a store that this user may only read: whoever collects there does not see him
            yield
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        except OSError:  # no locks here, so nobody collects here either
            hidden.unlink(missing_ok=True)
            os.close(fd)
            yield
            return
        try:
            os.write(fd, "\n".join(sorted(model.objects)).encode())
            os.rename(hidden, lease)
            self.model(model.name)  # if it is there now, it was there when the lease began
            yield
        finally:
            hidden.unlink(missing_ok=True)
            lease.unlink(missing_ok=True)
            os.close(fd)


_FURNITURE = ("objects", "models", "tmp", "leases", "lock", "log.jsonl", "quarantine", "unneeded")


def only_store(assets: Sequence[str], name: str) -> Path:
    """The one store that a command was given."""
    if len(assets) != 1:
        raise UsageError(
            f"takes one store, but {len(assets)} were given", where=f"store/{name}", hint=f"nett store {name} STORE"
        )
    return Path(assets[0])


def checked_name(name: str) -> str:
    """A model's name as a path below ``models``: no absolute path, no ``..``, nothing hidden."""
    if not re.fullmatch(r"[\w@=+,.~ -]+(/[\w@=+,.~ -]+)*", name) or any(p.startswith(".") for p in name.split("/")):
        raise Refused(f"{name!r} cannot name a model", hint="Letters, digits, - _ . and / between parts: --name NAME")
    return name


def make_folders(path: Path) -> None:
    """A folder and those above it; what is made survives a power cut."""
    fresh = [f for f in (path, *path.parents) if not f.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in fresh:
        sync_folder(folder.parent)


def write_whole(path: Path, content: bytes, scratch: Path) -> None:
    """Write a small file so that it appears whole, and survives a power cut."""
    temporary = scratch / uuid.uuid4().hex
    make_folders(path.parent)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
