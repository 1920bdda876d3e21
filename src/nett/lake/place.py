"""Where a lake lies: its files by relative name, and how an engine is told of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from nett.core.errors import Refused
from nett.lake import remote
from nett.lake.table import File

HIDDEN = (".", "_")  # as Hadoop has it: _SUCCESS, _temporary, .crc, ._resource forks


def is_local(path: str) -> bool:
    """Whether a path is one of this machine's."""
    return "://" not in path


def serve(connection: Any, path: str) -> Any:
    """A DuckDB connection that can open this path."""
    return connection if is_local(path) else remote.serve(connection, path)


def open_file(path: str) -> Any:
    """A file of a lake, to read and seek in."""
    return open(path, "rb") if is_local(path) else remote.opened(path)


def hidden(folder: str) -> bool:
    """Whether a folder is none of the tables': a partition by a column such as ``_day`` is."""
    return folder.startswith(HIDDEN) and not ("=" in folder and not folder.startswith("."))


@final
class Place:
    """The root of a lake. Names are relative to it, with ``/``. ``unlisted``: folders that could not be read, and why."""

    def __init__(self, root: str) -> None:
        self.unlisted: dict[str, str] = {}
        if not is_local(root):
            self.root = root.rstrip("/")
            return
        self.root = os.path.abspath(root)
        if not os.path.exists(self.root):
            raise Refused("there is no such file or folder", where=root)

    def path(self, name: str) -> str:
        """What an engine opens."""
        return f"{self.root}/{name}" if name else self.root

    def files(self) -> Iterator[tuple[str, File]]:
        """(name, file) of every file below the root that is not hidden, in the order of their names. Folders named
        ``_delta_log`` are walked, since they tell what a table is."""
        if not is_local(self.root):
            for name, file in remote.files_below(self.root):
                *folders, last = name.split("/")
                if not last.startswith(".") and not any(hidden(f) and f != "_delta_log" for f in folders):
                    yield name, file
        elif os.path.isfile(self.root):
            yield os.path.basename(self.root), self._file(self.root)
        else:
            yield from self._below("")

    def _below(self, folder: str) -> Iterator[tuple[str, File]]:
        try:
            with os.scandir(self.path(folder)) as entries:
                found = sorted(entries, key=lambda e: e.name)
        except OSError as error:
            if not folder:
                raise Refused(f"cannot be listed: {error.strerror}", where=self.root) from error
            self.unlisted[folder] = f"cannot be listed: {error.strerror}"
            return
        for entry in found:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                if not entry.is_symlink() and (not hidden(entry.name) or entry.name == "_delta_log"):
                    yield from self._below(name)
            elif entry.is_file() and not entry.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                    yield name, self._file(entry.path)

    def _file(self, path: str) -> File:
        state = Path(path).stat()
        return File(path, state.st_size, str(state.st_mtime_ns))
