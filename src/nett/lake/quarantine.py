"""nett's own folder in a lake, and what it holds: tables that were moved aside, and how each comes back.

    .nett-lake/lock                    who holds it is the one that changes anything
    .nett-lake/audit.jsonl             what was done, a line each, never rewritten
    .nett-lake/tables/ID/record.json   the table's pin, its parents' pins, its rebuild: written before it is moved
    .nett-lake/tables/ID/...           the files of its selector
    .nett-lake/tables/ID/purged.json   that its bytes may go, or went: written before they do
    .nett-lake/quarantine/ID/NAME      its file or folder

What state a table is in is told by what is there, so a kill between any two steps leaves nothing in doubt. As long as
the record is there, the parents that it names are not deleted.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import getpass
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from nett.core.errors import NettError, Refused
from nett.core.staging import put_file, sync_folder
from nett.lake.inside import OWN, Relative, inside
from nett.lake.plan_file import Deletion, Pin, checked
from nett.lake.rebuild import Strict

State = Literal["intended", "quarantined", "purged", "lost"]


class Record(Strict):
    """What is known of one table that was, or is to be, moved aside. ``plan``: sha256 of the plan's file."""

    nett_lake_record: Literal[1]
    time: float
    plan: str
    deletion: Deletion
    parents: tuple[Pin, ...]
    mode: int = 0o644  # of its file or folder
    view: Relative | None = None
    view_sql: str = ""


@final
@dataclass(frozen=True)
class Entry:
    """A record where it lies."""

    id: str
    record: Record
    place: Path  # the quarantine's folder of this table
    folder: Path  # of the record
    original: Path

    @property
    def name(self) -> str:
        return self.record.deletion.table.name

    @property
    def data(self) -> Path:
        return self.place / os.path.basename(self.record.deletion.path)

    @property
    def purging(self) -> bool:
        return (self.folder / "purged.json").exists()

    @property
    def state(self) -> State:
        if os.path.lexists(self.data):
            return "quarantined"
        if self.purging:
            return "purged"
        return "intended" if os.path.lexists(self.original) else "lost"


@final
class Quarantine:
    """The folder of one lake; made when something is first written."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.own = self.root / OWN

    def entries(self) -> list[Entry]:
        """All tables with a record, by name. Refused where a record does not hold: what it says is not known."""
        folder = self.own / "tables"
        if not folder.is_dir():
            return []
        found = []
        for one in sorted(folder.iterdir()):
            if (one / "record.json").is_file():
                record: Record = checked(Record, (one / "record.json").read_bytes(), one / "record.json")
                found.append(self._entry(one.name, record))
        return sorted(found, key=lambda e: e.name)

    def _entry(self, id: str, record: Record) -> Entry:
        own = self.own
        return Entry(id, record, own / "quarantine" / id, own / "tables" / id, inside(self.root, record.deletion.path))

    def protected(self) -> dict[str, str]:
        """Parents that tables which are not there rest on -> one such table."""
        return {
            pin.name: e.name
            for e in self.entries()
            if e.state in ("quarantined", "purged", "lost")
            for pin in e.record.parents
        }

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """While this lasts, nobody else changes anything here. Refused where another does, or it cannot be written."""
        try:
            for folder in (self.own, self.own / "tables", self.own / "quarantine", self.own / "tmp"):
                folder.mkdir(exist_ok=True)
            fd = os.open(self.own / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise Refused(f"cannot be written: {error.strerror}", where=error.filename or self.own) from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Refused("another nett is changing this lake right now", where=self.root) from error
            except OSError as error:
                raise Refused(f"cannot be locked: {error.strerror}", where=self.own) from error
            try:
                self._settle()
                yield
            except OSError as error:
                raise NettError(
                    f"{error.strerror or error}", where=error.filename or self.root,
                    hint="Nothing is lost; the same command again ends the work.",
                ) from error  # fmt: skip
        finally:
            os.close(fd)

    def _settle(self) -> None:
        """Clear away what a kill left: scratch, folders without a record, and records of tables that were not moved."""
        for left in (self.own / "tmp").iterdir():
            removed(left)
        for folder in (self.own / "tables").iterdir():
            if not (folder / "record.json").is_file():
                shutil.rmtree(folder)
        last = self._last_events()
        for entry in self.entries():
            state, event = entry.state, last.get(entry.id)
            if state == "intended":
                if event in ("quarantined", "purged"):  # it was moved back, and only that was not yet written down
                    self.audit("restored", entry, recovered=True)
                self.forget(entry)
            elif event == "restored" and state != "quarantined" and os.path.lexists(entry.original):
                self.forget(entry)  # rebuilt, put back and written down
            elif state in ("quarantined", "purged") and event != state:
                self.audit(state, entry, recovered=True)
        for place in (self.own / "quarantine").iterdir():
            if not any(place.iterdir()):
                place.rmdir()

    def _last_events(self) -> dict[str, str]:
        """What the log says was last done to each table; lines that a kill cut say nothing."""
        found: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.own / "audit.jsonl").read_bytes().splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    found[entry["id"]] = entry["what"]
        return found

    @contextlib.contextmanager
    def scratch(self, id: str) -> Iterator[Path]:
        """A folder on the lake's file system for what is being rebuilt."""
        folder = self.own / "tmp" / id
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def intend(self, record: Record, stored: Mapping[str, bytes]) -> Entry:
        """Write down what is about to be done; on disk when this returns."""
        id = entry_id(record.deletion)
        entry = self._entry(id, record)
        entry.folder.mkdir(exist_ok=True)
        entry.place.mkdir(exist_ok=True)
        for name, data in stored.items():
            put_file(entry.folder / name, data)
        sync_folder(entry.folder.parent)
        sync_folder(entry.place.parent)
        put_file(entry.folder / "record.json", record.model_dump_json(indent=1).encode())
        return entry

    def forget(self, entry: Entry) -> None:
        """Remove the record of a table that is where it belongs, and the view that stood in for it."""
        if entry.record.view is not None:
            view = inside(self.root, entry.record.view)
            if view.is_file() and view.read_bytes() == entry.record.view_sql.encode():
                view.unlink()
        (entry.folder / "record.json").unlink(missing_ok=True)
        sync_folder(entry.folder)
        shutil.rmtree(entry.folder)
        if entry.place.is_dir() and not any(entry.place.iterdir()):
            entry.place.rmdir()

    def audit(self, what: str, entry: Entry, **more: Any) -> None:
        """Add a line to the log; on disk when this returns. A line that a kill cut in two is ended, not mended."""
        line = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"), "user": _user(), "what": what,
            "table": entry.name, "id": entry.id, "plan": entry.record.plan, **more,
        }  # fmt: skip
        path = self.own / "audit.jsonl"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            size = os.fstat(fd).st_size
            torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
            data = (b"\n" if torn else b"") + json.dumps(line).encode() + b"\n"
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_folder(path.parent)


def move(source: Path, target: Path) -> None:
    """Rename, never over anything; both folders on disk when this returns."""
    if os.path.lexists(target):
        raise Refused("is there already", where=target)
    os.rename(source, target)
    sync_folder(target.parent)
    sync_folder(source.parent)


def removed(path: Path) -> None:
    """Delete a file or folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def entry_id(one: Deletion) -> str:
    """The same for the same table with the same bytes."""
    seen = [one.table.name, one.path, *((f.path, f.sha256) for f in one.table.files)]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:20]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
