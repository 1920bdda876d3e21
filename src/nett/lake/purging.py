"""Emptying the quarantine: bytes go for good once their table was rebuilt from its parents yet another time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import final

from nett.core.progress import report
from nett.core.staging import put_file, sync_folder
from nett.lake.pinning import Watch
from nett.lake.quarantine import Entry, Quarantine, removed
from nett.lake.redo import Redo


@final
class Purging:
    """One run over a lake's quarantine."""

    def __init__(self, quarantine: Quarantine, after: float) -> None:
        self.quarantine, self.after = quarantine, after

    def due(self) -> tuple[list[Entry], list[Entry]]:
        """(tables whose bytes may go, tables that must wait longer)."""
        there = [e for e in self.quarantine.entries() if e.state == "quarantined"]
        old = [e for e in there if time.time() - e.record.time >= self.after]
        return old, [e for e in there if e not in old]

    def purge(self, entries: Sequence[Entry], *, memory: str | None, threads: int | None) -> None:
        """Delete the bytes of these, one after the other. Refused or ProofFailed, with the bytes where they are, where
        a table can no longer be rebuilt."""
        watch = Watch(self.quarantine.root)
        redo = Redo(self.quarantine.root, memory=memory, threads=threads)
        report.begin("rebuilding once more, then purging", len(entries), "tables")
        try:
            for entry in entries:
                for pin in entry.record.parents:
                    watch.check(pin)
                with self.quarantine.scratch(entry.id) as scratch:
                    redo.rebuild(entry.record.deletion, entry.record.parents, entry.folder, scratch)
                for pin in entry.record.parents:
                    watch.still(pin)
                self._gone(entry)
                report.step(1)
        finally:
            report.end()
            redo.bench.close()

    def _gone(self, entry: Entry) -> None:
        put_file(entry.folder / "purged.json", json.dumps({"time": time.time()}).encode())
        trash = self.quarantine.own / "tmp" / f"{entry.id}.gone"
        os.rename(entry.data, trash)
        sync_folder(entry.place)
        removed(trash)
        self.quarantine.audit("purged", entry, bytes=entry.record.deletion.bytes)
        entry.place.rmdir()
