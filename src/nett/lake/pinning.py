"""Tables held to what a plan pinned: sizes and sha256 of every file, and a watch on both until the act."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import final

from nett.core.errors import Refused
from nett.lake.equal_tables import BLOCK
from nett.lake.inside import files_at
from nett.lake.plan_file import Pin, PinnedFile
from nett.lake.table import Table

Marks = tuple[tuple[str, int, int, int, int], ...]


def pin_of(table: Table, root: Path) -> Pin:
    """A table as it is now."""
    files = files_at(root, [os.path.relpath(f.path, root) for f in table.files])
    return Pin(
        name=table.name,
        format=table.format,
        files=tuple(
            PinnedFile(path=os.path.relpath(f.path, root), bytes=f.size, sha256=sha256_of(Path(f.path))) for f in files
        ),
    )


def sha256_of(path: Path) -> str:
    """Of a file's bytes. Refused where it cannot be read, or is written meanwhile."""
    seen = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            while block := file.read(BLOCK):
                seen.update(block)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}", where=path) from error
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise Refused("is being written right now", where=path)
    return seen.hexdigest()


@final
class Watch:
    """Pinned tables of one lake that were checked, and what their files looked like then."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: dict[str, Marks] = {}

    def check(self, pin: Pin, *, at: Path | None = None, unit: str = "") -> None:
        """Read every file and compare. ``at``: where what was ``unit`` lies now, if not where it was pinned.

        Refused where anything differs.
        """
        key = f"{pin.name}\n{at or ''}"
        if key in self._seen:
            self.still(pin, at=at, unit=unit)
            return
        marks = self._marks(pin, at, unit)
        for file, path in zip(pin.files, self._paths(pin, at, unit), strict=True):
            if path.lstat().st_size != file.bytes or sha256_of(path) != file.sha256:
                raise Refused(
                    "has changed since the plan was made",
                    where=path,
                    hint="Plan anew: nett lake plan LAKE --out PLAN.json",
                )
        if marks != self._marks(pin, at, unit):
            raise Refused("is being written right now", where=self._paths(pin, at, unit)[0])
        self._seen[key] = marks

    def still(self, pin: Pin, *, at: Path | None = None, unit: str = "") -> None:
        """Refused if a table that was checked was touched since."""
        if self._seen.get(f"{pin.name}\n{at or ''}") != self._marks(pin, at, unit):
            raise Refused(
                "was written while nett was looking at it; nothing was done to it", where=self._paths(pin, at, unit)[0]
            )

    def moved_along(self, pin: Pin, at: Path, unit: str) -> bool:
        """Whether what lies at ``at`` now are the very files that were checked where they were pinned."""
        before = self._seen[f"{pin.name}\n"]
        try:
            return [m[1:4] for m in before] == [m[1:4] for m in self._marks(pin, at, unit)]
        except OSError:
            return False

    def _paths(self, pin: Pin, at: Path | None, unit: str) -> list[Path]:
        if at is None:
            return [Path(f.path) for f in files_at(self.root, [f.path for f in pin.files])]
        return [at / os.path.relpath(f.path, unit) for f in pin.files]

    def _marks(self, pin: Pin, at: Path | None, unit: str) -> Marks:
        return tuple(_mark(path) for path in self._paths(pin, at, unit))


def _mark(path: Path) -> tuple[str, int, int, int, int]:
    state = path.lstat()
    return str(path), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
