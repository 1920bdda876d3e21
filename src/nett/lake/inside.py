"""Names that stay in a lake: relative, without ``..``, and by no symbolic link."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

from nett.core.errors import Refused
from nett.lake.table import File, Table

OWN = ".nett-lake"  # the folder of nett's own in a lake; hidden, so that no scan looks into it


def relative(name: str) -> str:
    """``name`` if it stays below where it starts; ValueError otherwise."""
    parts = PurePosixPath(name).parts
    if not name or name.startswith("/") or "\x00" in name or ".." in parts or parts != tuple(name.split("/")):
        raise ValueError(f"{name!r} is not a plain name below the lake's folder")
    if parts[0] == OWN:
        raise ValueError(f"{name!r} lies in nett's own folder {OWN}")
    return name


Relative = Annotated[str, AfterValidator(relative)]


def inside(root: Path, name: str) -> Path:
    """The path of a name in a lake. Refused where a part of it is a symbolic link, or the name leaves the lake."""
    try:
        relative(name)
    except ValueError as error:
        raise Refused(str(error), where=root) from error
    path = root
    for part in PurePosixPath(name).parts:
        path = path / part
        try:
            linked = path.is_symlink()
        except OSError as error:
            raise Refused(f"cannot be looked at: {error.strerror}", where=path) from error
        if linked:
            raise Refused("is a symbolic link; nett neither moves nor reads through those", where=path)
    return path


def unit_of(table: Table, root: Path) -> str:
    """The one name that holds all of a table and nothing else: its file, or its folder; ValueError, in words that
    follow the table's name, where there is none."""
    names = [os.path.relpath(f.path, root) for f in table.files]
    if len(names) == 1:
        return names[0]
    folder = os.path.commonpath([os.path.dirname(n) for n in names])
    if not folder:
        raise ValueError("its files lie in the lake's own folder")
    mine = set(names)
    for below, _, files in os.walk(root / folder):
        for file in files:
            name = os.path.relpath(os.path.join(below, file), root)
            if name not in mine and not file.startswith((".", "_")):
                raise ValueError(f"other files lie in its folder, such as {name}")
    return folder


def files_at(root: Path, names: Sequence[str]) -> tuple[File, ...]:
    """Files of a lake by name. Refused where one is missing, no plain file, or reached by a link."""
    found = []
    for name in names:
        path = inside(root, name)
        try:
            state = path.lstat()
        except OSError as error:
            raise Refused(f"is not there: {error.strerror}", where=path) from error
        if not stat.S_ISREG(state.st_mode):
            raise Refused("is not a plain file", where=path)
        found.append(File(str(path), state.st_size, str(state.st_mtime_ns)))
    return tuple(found)
