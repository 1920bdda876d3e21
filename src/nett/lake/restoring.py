"""Tables brought back: out of the quarantine with the same bytes, else rebuilt from their parents."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import final

from nett.core.errors import Refused, UsageError, did_you_mean
from nett.core.progress import report
from nett.core.staging import sync_folder
from nett.lake.pinning import Watch
from nett.lake.quarantine import Entry, Quarantine, move
from nett.lake.redo import Redo


@final
class Restoring:
    """One run over the tables of a lake that were moved aside."""

    def __init__(self, quarantine: Quarantine, *, memory: str | None, threads: int | None) -> None:
        self.quarantine, self.memory, self.threads = quarantine, memory, threads
        self.watch = Watch(quarantine.root)
        self._redo: Redo | None = None

    def chosen(self, names: Sequence[str], *, all: bool) -> list[Entry]:
        """The tables asked for; UsageError for a name that was not moved aside."""
        there = {e.name: e for e in self.quarantine.entries()}
        for name in names:
            if name not in there:
                raise UsageError(
                    f"no table called {name!r} was moved aside here.{did_you_mean(name, there)}",
                    where=self.quarantine.root,
                )
        return list(there.values()) if all else [there[name] for name in dict.fromkeys(names)]

    def restore(self, entries: Sequence[Entry]) -> list[dict[str, object]]:
        """Bring these back; what was brought back stays so if a later one is refused."""
        told: list[dict[str, object]] = []
        there = {e.id for e in self.quarantine.entries()}
        entries = [e for e in entries if e.id in there]  # a run that was killed may have left some to be forgotten only
        report.begin("restoring", len(entries), "tables")
        try:
            for entry in entries:
                told.append({"name": entry.name, "from": self._one(entry)})
                report.step(1)
        finally:
            report.end()
            if self._redo is not None:
                self._redo.bench.close()
        return told

    def _one(self, entry: Entry) -> str:
        one = entry.record.deletion
        if os.path.lexists(entry.original):
            self._there_already(entry)
            return "rebuild"
        _made_folders(entry.original.parent, self.quarantine.root)
        if entry.state == "quarantined":
            self.watch.check(one.table, at=entry.data, unit=one.path)
            move(entry.data, entry.original)
            came = "quarantine"
        else:
            for pin in entry.record.parents:
                self.watch.check(pin)
            with self.quarantine.scratch(entry.id) as scratch:
                made = self._bench().rebuild(one, entry.record.parents, entry.folder, scratch)
                for pin in entry.record.parents:
                    self.watch.still(pin)
                made.chmod(entry.record.mode)
                for folder, _, _ in os.walk(made):
                    sync_folder(Path(folder))
                move(made, entry.original)
            came = "rebuild"
        self.quarantine.audit("restored", entry, source=came)
        self.quarantine.forget(entry)
        return came

    def _there_already(self, entry: Entry) -> None:
        """A kill may have come straight after the table was put back; anything else at its place is not touched."""
        if entry.state == "quarantined" or not self._bench().is_it(entry.record.deletion, entry.original):
            raise Refused(
                "something else lies there now, so the table cannot be put back", where=entry.original,
                hint="Move it away, then restore again.",
            )  # fmt: skip
        self.quarantine.audit("restored", entry, source="rebuild", recovered=True)
        self.quarantine.forget(entry)

    def _bench(self) -> Redo:
        if self._redo is None:
            self._redo = Redo(self.quarantine.root, memory=self.memory, threads=self.threads)
        return self._redo


def _made_folders(folder: Path, root: Path) -> None:
    """Make the folders that are gone; each name on disk."""
    if folder != root and not folder.is_dir():
        _made_folders(folder.parent, root)
        folder.mkdir()
        sync_folder(folder.parent)
