"""A pinned table rebuilt from its pinned parents, written in its own form, read back and compared: before it is moved
aside, before it is purged, and when it is restored."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import final

from nett.core.errors import ProofFailed, Refused
from nett.lake.discovery import described
from nett.lake.exact import NotExact
from nett.lake.formats import Unreadable
from nett.lake.inside import files_at
from nett.lake.pinning import sha256_of
from nett.lake.plan_file import Deletion, Pin
from nett.lake.rebuild import rebuild_sql
from nett.lake.rebuild_find import exact_bag, row_counts
from nett.lake.rebuild_selector import load_picks
from nett.lake.table import File, Table
from nett.lake.workbench import Workbench
from nett.lake.written import form_of, same_form, write


@final
class Redo:
    """The work of one run: parents are described and staged once. Close the bench."""

    def __init__(self, root: Path, *, memory: str | None = None, threads: int | None = None) -> None:
        self.root = root
        self.bench = Workbench(memory=memory, threads=threads)
        self._tables: dict[str, Table] = {}

    def table(self, pin: Pin) -> Table:
        """A pinned table as its format tells it now."""
        if pin.name not in self._tables:
            files = files_at(self.root, [f.path for f in pin.files])
            try:
                self._tables[pin.name] = described(pin.name, pin.format, files)
            except (Unreadable, ImportError) as why:
                raise Refused(f"cannot be read as {pin.format}: {why}", where=files[0].path) from why
        return self._tables[pin.name]

    def rebuild(self, one: Deletion, parents: Sequence[Pin], selectors: Path, out: Path) -> Path:
        """The table, whole, at ``out``/its file's or folder's name, on disk. ``selectors``: the folder to which the
        names of the selector's files are relative.

        ProofFailed where the result is not the very table that was pinned; a copy has its bytes.
        """
        target = out / os.path.basename(one.path)
        if one.rebuild.kind == "copy":
            return self._copied(one, parents[0], target)
        assert one.form is not None
        names = [os.path.relpath(f.path, one.path) for f in one.table.files]
        file = target if names == ["."] else target / names[0]  # a table of several files comes back as one of them
        file.parent.mkdir(parents=True, exist_ok=True)
        tables = {pin.name: self.table(pin) for pin in parents}
        import duckdb

        try:
            picks = load_picks(self.bench, one.rebuild, selectors, row_counts(self.bench, one.rebuild, tables))
            sql = rebuild_sql(one.rebuild, one.own, tables, self.bench.source, self.bench.projected, picks)
            write(self.bench, sql, one.form, file)
            if picks is not None:
                self.bench.drop(picks)
            self._compare(one, file)
        except (NotExact, Unreadable, duckdb.Error) as why:
            raise ProofFailed(
                f"cannot be rebuilt: {str(why).splitlines()[0][:300]}", where=self.root / one.path
            ) from why
        return target

    def is_it(self, one: Deletion, path: Path) -> bool:
        """Whether the pinned table, or a rebuild of it, lies at a path."""
        names = [os.path.relpath(f.path, one.path) for f in one.table.files]
        if one.rebuild.kind == "copy":
            files = [path if n == "." else path / n for n in names]
            return all(f.is_file() and sha256_of(f) == p.sha256 for f, p in zip(files, one.table.files, strict=True))
        file = path if names == ["."] else path / names[0]
        if not file.is_file() or (path.is_dir() and len(list(path.iterdir())) != 1):
            return False
        try:
            self._compare(one, file)
        except (ProofFailed, NotExact, Unreadable):
            return False
        return True

    def _compare(self, one: Deletion, file: Path) -> None:
        assert one.form is not None
        state = file.stat()
        again = described(one.table.name, one.table.format, [File(str(file), state.st_size, str(state.st_mtime_ns))])
        form = form_of(self.bench, again)
        if not same_form(form, one.form):
            raise ProofFailed("a rebuild has other columns or types than were pinned", where=self.root / one.path)
        bag, _ = exact_bag(self.bench, again, self.bench.own(again))
        self.bench.forget(again)
        if str(bag) != one.bag:
            raise ProofFailed(
                f"a rebuild gives other rows than were pinned ({bag} instead of {one.bag})",
                where=self.root / one.path,
            )

    def _copied(self, one: Deletion, parent: Pin, target: Path) -> Path:
        if [(f.bytes, f.sha256) for f in parent.files] != [(f.bytes, f.sha256) for f in one.table.files]:
            raise ProofFailed(f"{parent.name!r} does not have the same bytes", where=self.root / one.path)
        for source, file in zip(files_at(self.root, [f.path for f in parent.files]), one.table.files, strict=True):
            name = os.path.relpath(file.path, one.path)
            path = target if name == "." else target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path, path)
            with path.open("rb") as opened:
                os.fsync(opened.fileno())
            if sha256_of(path) != file.sha256:
                raise ProofFailed("a copy has other bytes than were pinned", where=source.path)
        return target
