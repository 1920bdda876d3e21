"""The files under some folders: each once, with all its names, and what is left alone on the way.

No symlink is followed, so nothing outside is reached and no loop is walked.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, final

from nett.core.caches import UNFINISHED, hub_cache, left_alone
from nett.core.shown import shown

RECEIPT = ".nett-link"
STAGED = re.compile(r"\.nett-link-[0-9a-f]{32}")  # what an act of linking has in hand


class Name(NamedTuple):
    """Where a name stands; ``place`` is the folder's device and inode, so that another folder is not taken for it."""

    folder: str
    name: str
    place: tuple[int, int]

    @property
    def path(self) -> str:
        return os.path.join(self.folder, self.name)


@final
@dataclass(eq=False)
class File:
    """A regular file, as it was when it was seen, with its names under the given folders, sorted."""

    stat: os.stat_result
    names: list[Name]
    sha256: str = ""
    left: int = 0  # names that killed acts gave it

    @property
    def path(self) -> str:
        return self.names[0].path

    @property
    def key(self) -> tuple[int, int]:
        return self.stat.st_dev, self.stat.st_ino

    @property
    def allocated(self) -> int:
        """Bytes on disk; fewer than its size where the file is sparse."""
        return self.stat.st_blocks * 512

    def is_state(self, found: os.stat_result) -> bool:
        """Whether ``found`` is this file, unchanged."""
        fields = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
        return all(getattr(found, f) == getattr(self.stat, f) for f in fields)


@final
@dataclass(eq=False)
class Tree:
    """What a walk found."""

    files: list[File] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # folder, why
    leftovers: list[Name] = field(default_factory=list)  # of acts that were killed
    notes: list[str] = field(default_factory=list)


def walk(roots: Iterable[Path], *, least: int, but: Path | None = None) -> Tree:
    """Every regular file of ``least`` bytes or more under ``roots``, by path; ``but`` is a folder to pass over."""
    tree, left, seen = Tree(), Counter[tuple[str, str]](), set[tuple[int, int]]()
    files: dict[tuple[int, int], File] = {}
    left_behind = Counter[tuple[int, int]]()
    waiting: list[str] = []
    hub = hub_cache()
    for root in sorted({os.path.realpath(r) for r in roots}, reverse=True):
        above = [str(p) for p in Path(root).parents]
        if why := next((w for folder in above if (w := left_alone(folder, hub))), None):
            left[root, why] += 1
        else:
            waiting.append(root)
    passed = None if but is None else os.path.realpath(but)
    unfinished = 0
    while waiting:
        folder = waiting.pop()
        if folder == passed or os.path.basename(folder) == RECEIPT:
            continue
        if why := left_alone(folder, hub):
            left[os.path.dirname(folder), why] += 1
            continue
        try:
            inside = os.stat(folder, follow_symlinks=False)
            place = inside.st_dev, inside.st_ino
            if place in seen or not stat.S_ISDIR(inside.st_mode):
                continue
            seen.add(place)
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda e: e.name)
        except OSError as error:
            tree.unreadable.append((folder, f"cannot be read: {error.strerror}"))
            continue
        folders = []
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:  # gone since it was listed
                continue
            if stat.S_ISDIR(found.st_mode):
                folders.append(entry.path)
            elif stat.S_ISREG(found.st_mode):
                name = Name(folder, entry.name, place)
                if STAGED.fullmatch(entry.name):
                    tree.leftovers.append(name)
                    left_behind[found.st_dev, found.st_ino] += 1
                elif UNFINISHED.fullmatch(entry.name):
                    unfinished += 1
                elif found.st_size >= max(1, least):
                    files.setdefault((found.st_dev, found.st_ino), File(found, [])).names.append(name)
        waiting += reversed(folders)
    for one in files.values():
        one.names.sort()
        one.left = left_behind[one.key]
    tree.files = sorted(files.values(), key=lambda f: f.names[0])
    tree.notes = [f"left alone in {shown(where)}: {n:,} {_noun(n)} {why}" for (where, why), n in sorted(left.items())]
    if unfinished:
        tree.notes.append(f"left alone: {unfinished:,} unfinished {'download' if unfinished == 1 else 'downloads'}")
    return tree


def _noun(number: int) -> str:
    return "folder" if number == 1 else "folders"
