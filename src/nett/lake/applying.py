"""A plan carried out: each table rebuilt and compared first, then moved aside, written down before it is.

The order for each table, each step on disk before the next:
    its pin and its parents' are compared, file by file; it is rebuilt and compared; nothing was written meanwhile;
    the record (pins, rebuild, selector); the rename into the quarantine; the parents once more, else it is moved back;
    a line in the audit log.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, final

from nett.core.errors import Refused
from nett.core.progress import report
from nett.core.staging import put_file
from nett.lake.discovery import described
from nett.lake.formats import Unreadable
from nett.lake.inside import files_at, inside, unit_of
from nett.lake.pinning import Watch, sha256_of
from nett.lake.plan_file import Deletion, Plan, read_plan, renamed
from nett.lake.quarantine import Entry, Quarantine, Record, entry_id, move
from nett.lake.rebuild_selector import checked
from nett.lake.redo import Redo

View = Literal["none", "duckdb", "spark"]


@final
class Applying:
    """One plan and the lake that it is for."""

    def __init__(self, path: Path, lake: Path | None) -> None:
        self.path = Path(path)
        self.plan: Plan = read_plan(self.path)
        self.digest = sha256_of(self.path)
        root = Path(lake) if lake is not None else self.path.absolute().parent / self.plan.lake
        if not root.is_dir():
            raise Refused("is not the folder of a lake", where=root, hint="Say where it lies: --lake PATH")
        self.root = Path(os.path.realpath(root))
        self.quarantine = Quarantine(self.root)
        self.watch = Watch(self.root)

    def done(self) -> set[str]:
        """Tables of the plan that were moved aside already."""
        there = {e.id: e for e in self.quarantine.entries() if e.state in ("quarantined", "purged")}
        return {d.table.name for d in self.plan.delete if entry_id(d) in there}

    def check(self, todo: Sequence[Deletion], view: View) -> None:
        """Refused if anything is not as it was planned, before anything is done."""
        rests = self.quarantine.protected()
        aside = {e.name for e in self.quarantine.entries() if e.state != "intended"}
        report.begin("checking tables", len(todo), "tables")
        for one in todo:
            place = inside(self.root, one.path)
            if one.table.name in rests:
                raise Refused(f"{rests[one.table.name]!r}, which was moved aside, is rebuilt from it", where=place)
            for parent in one.rebuild.parents:
                if parent in aside:
                    raise Refused(f"is to be rebuilt from {parent!r}, which was moved aside", where=place)
            self._alone(one)
            self._writable(place)
            for file in one.rebuild.stored:
                checked(self.path.absolute().parent, file)
            for pin in (one.table, *self.plan.pins(one)):
                self.watch.check(pin)
            view_at = None if view == "none" else inside(self.root, f"{one.path}.{view}.sql")
            if view_at is not None and os.path.lexists(view_at):
                raise Refused("is there already, so no view can be put there", where=view_at)
            report.step(1)
        report.end()

    def _alone(self, one: Deletion) -> None:
        """The path is all of the table, and nothing but it."""
        files = files_at(self.root, [f.path for f in one.table.files])
        try:
            if len(files) == 1 and one.path == one.table.files[0].path:
                return
            found = unit_of(described(one.table.name, one.table.format, files), self.root)
        except (Unreadable, ValueError) as why:
            raise Refused(str(why), where=self.root / one.path) from why
        if found != one.path:
            raise Refused(f"is not all of the table {one.table.name!r} ({found!r} is)", where=self.root / one.path)

    def _writable(self, place: Path) -> None:
        if not os.access(place.parent, os.W_OK | os.X_OK):
            raise Refused("cannot be written by this user, so nothing can be moved out of it", where=place.parent)
        own = self.quarantine.own
        if not os.access(own if own.exists() else self.root, os.W_OK | os.X_OK):
            raise Refused("cannot be written by this user", where=own if own.exists() else self.root)
        if os.lstat(place).st_dev != os.stat(own if own.exists() else self.root).st_dev:
            raise Refused(
                "lies on another file system than the lake's folder, so it cannot be moved at once", where=place
            )

    def apply(self, todo: Sequence[Deletion], *, view: View, memory: str | None, threads: int | None) -> list[Entry]:
        """Move the tables aside, one after the other; what was moved stays so if a later one is refused."""
        redo = Redo(self.root, memory=memory, threads=threads)
        moved = []
        report.begin("rebuilding, then moving aside", len(todo), "tables")
        try:
            for one in todo:
                moved.append(self._one(one, redo, view))
                report.step(1)
        finally:
            report.end()
            redo.bench.close()
        return moved

    def _one(self, one: Deletion, redo: Redo, view: View) -> Entry:
        parents = self.plan.pins(one)
        with self.quarantine.scratch(entry_id(one)) as scratch:
            redo.rebuild(one, parents, self.path.absolute().parent, scratch)
        for pin in (one.table, *parents):
            self.watch.still(pin)
        names = {s.path: os.path.basename(s.path) for s in one.rebuild.stored}
        stored = {names[s.path]: checked(self.path.absolute().parent, s) for s in one.rebuild.stored}
        kept = one.model_copy(update={"rebuild": renamed(one.rebuild, names)})
        text = _view(one, redo, self, view)
        view_at = f"{one.path}.{view}.sql" if text is not None else None
        record = Record(
            nett_lake_record=1, time=time.time(), plan=self.digest, deletion=kept, parents=tuple(parents),
            mode=stat.S_IMODE(inside(self.root, one.path).lstat().st_mode), view=view_at, view_sql=text or "",
        )  # fmt: skip
        entry = self.quarantine.intend(record, stored)
        for pin in (one.table, *parents):
            self.watch.still(pin)
        if text is not None and view_at is not None:
            put_file(inside(self.root, view_at), text.encode())
        move(entry.original, entry.data)
        try:
            for pin in parents:
                self.watch.still(pin)
            if not self.watch.moved_along(one.table, entry.data, one.path):
                raise Refused("was written while nett was looking at it; it was put back", where=entry.original)
        except Refused:
            move(entry.data, entry.original)
            self.quarantine.forget(entry)
            raise
        self.quarantine.audit(
            "quarantined", entry, bytes=one.bytes, bag=one.bag, parents=list(one.rebuild.parents), view=view_at
        )
        return entry


def _view(one: Deletion, redo: Redo, run: Applying, view: View) -> str | None:
    """A statement that makes a view of the table's name; None where none was asked for, or none can say the rebuild."""
    if view == "none":
        return None
    from nett.lake.views import view_sql

    return view_sql(one, {p.name: redo.table(p) for p in run.plan.pins(one)}, run.root, view)


def as_json(run: Applying, todo: Sequence[Deletion], entries: Sequence[Entry] | None) -> dict[str, Any]:
    """What would be done, or was."""
    return {
        "lake": str(run.root), "applied": entries is not None,
        "tables": [{"name": d.table.name, "bytes": d.bytes, "way": d.rebuild.kind, "parents": list(d.rebuild.parents),
                    "id": entry_id(d)} for d in todo],
        "bytes_freed_after_purge": sum(d.bytes - d.rebuild.bytes for d in todo),
    }  # fmt: skip
