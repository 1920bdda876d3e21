"""Equal files that can share their bytes where they lie, and the command for it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import final

from nett.core.shown import quoted
from nett.scan.disk.evidence import Evidence
from nett.scan.disk.items import Item

LEAST = 1_000_000  # bytes: the least that ``nett store link`` looks at
_MOST = 6  # folders in a command
_ROOTS = ("Ollama", "LM Studio", "torch hub")


@final
class Links:
    """``kept``: copy -> the file whose bytes it would come to share. Nothing in a hub cache is ever among them."""

    def __init__(self, equal: Mapping[Evidence, Evidence]) -> None:
        groups: dict[Evidence, list[Evidence]] = defaultdict(list)
        for copy, one in equal.items():
            groups[one].append(copy)
        self.kept: dict[Evidence, Evidence] = {}
        for one, copies in groups.items():
            able: dict[object, list[Evidence]] = defaultdict(list)
            for e in (one, *copies):
                if e.item.held != "hub" and e.item.size >= LEAST:
                    able[_alike(e.item)].append(e)
            for first, *others in able.values():
                for other in others:
                    if not other.item.pinned:
                        self.kept[other] = first

    def command(self, copy: Evidence) -> str:
        return link_command([copy.item, self.kept[copy].item])

    @property
    def commands(self) -> str:
        """One command for all of them."""
        return link_command([e.item for pair in self.kept.items() for e in pair])


def without_shared_blocks(equal: Mapping[Evidence, Evidence]) -> dict[Evidence, Evidence]:
    """The copies that are ones: two files may be equal because they share their blocks already (reflinks)."""
    return {copy: one for copy, one in equal.items() if not _share(copy.item, one.item)}


def _share(copy: Item, one: Item) -> bool:
    """Whether every block of two files is one on the disk, as far as the file system tells."""
    from nett.store.sharing import share_blocks

    if copy.stat.st_dev != one.stat.st_dev:
        return False
    try:
        with open(copy.path, "rb") as first, open(one.path, "rb") as second:
            return share_blocks(first.fileno(), second.fileno())
    except OSError:
        return False


def _alike(item: Item) -> object:
    """What two files must have in common to become one: file system, owner, group, permissions."""
    return item.stat.st_dev, item.stat.st_uid, item.stat.st_gid, item.stat.st_mode


def link_command(items: Sequence[Item]) -> str:
    """``nett store link`` over the folders in which the files lie; a program's models are one folder."""
    found = {i.place.path if i.place.kind in _ROOTS else os.path.dirname(i.path) for i in items}
    if len(found) > _MOST:  # too many to name: what they have in common, which is no more than the place
        below: dict[str, list[str]] = defaultdict(list)
        for item in items:
            below[item.place.path].append(os.path.dirname(item.path))
        found = {os.path.commonpath(folders) for folders in below.values()}
    kept = [f for f in sorted(found) if not any(f != g and f.startswith(os.path.join(g, "")) for g in found)]
    return " ".join(["nett store link", *map(quoted, kept)])


def add_command(*paths: str) -> str:
    return " ".join(["nett store add", *(quoted(p) for p in dict.fromkeys(paths)), "--into STORE"])
