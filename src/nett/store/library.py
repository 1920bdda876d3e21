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
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import nett
from nett.core import receipt as receipts
from nett.core.errors import ProofFailed, Refused, UsageError, did_you_mean
from nett.core.staging import sync_folder
from nett.store import locks
from nett.store.placing import make_folders, write_whole
from nett.store.records import Model, checked_name
from nett.store.shelf import Shelf

FORMAT = 1


@final
class Library:
    """An open store; see :meth:`open` and :meth:`create`. Reading is safe from several threads."""

    def __init__(self, root: Path) -> None:
        self.root, self.objects = root, Shelf(root)

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

    def close(self) -> None:
        self.objects.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- locks --------------------------------------------------------------------------------------------------

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """The one writer; Refused where there is another."""
        return locks.writing(self.root)

    def leased(self, model: Model) -> contextlib.AbstractContextManager[None]:
        """While this lasts, garbage collection leaves the model's objects alone, even if the model is removed."""
        return locks.leased(self.root, model.objects, lambda: self.model(model.name))


_FURNITURE = ("objects", "models", "tmp", "leases", "lock", "log.jsonl", "quarantine", "unneeded")


def only_store(assets: Sequence[str], name: str) -> Path:
    """The one store that a command was given."""
    if len(assets) != 1:
        raise UsageError(
            f"takes one store, but {len(assets)} were given", where=f"store/{name}", hint=f"nett store {name} STORE"
        )
    return Path(assets[0])
