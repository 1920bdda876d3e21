"""Which of the equal files is kept, and how the others come to share its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

from nett.core.shown import shown
from nett.store import obstacles, sharing
from nett.store.equal_files import equal_files
from nett.store.handle import NotLinked, held, open_for_writing, writers
from nett.store.tree import File, Tree, walk

How = Literal["reflink", "hardlink"]
NEEDS = "could only become a hardlink here (no reflinks on this file system), which --hardlink allows"
SHARED = (
    "a hardlinked file is one file under several names: a program that edits it in place, and does not write a new one,"
    " changes it under all of them; times become those of the file that is kept"
)


@final
@dataclass(eq=False)
class Pair:
    """``copy`` is to share the bytes of ``kept``. ``asked``: whether the user allowed it to be done in this way."""

    kept: File
    copy: File
    how: How
    asked: bool

    @property
    def freed(self) -> int:
        return self.copy.allocated


@final
@dataclass(eq=False)
class Plan:
    """What a run would do, and what it would not."""

    tree: Tree
    pairs: list[Pair] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)  # path, why

    def freed(self, *, asked: bool) -> int:
        return sum(p.freed for p in self.pairs if p.asked == asked)

    @property
    def kept(self) -> list[File]:
        return list(dict.fromkeys(p.kept for p in self.pairs))


def plan_links(
    roots: Sequence[Path],
    *,
    least: int,
    reflink: bool,
    hardlink: bool,
    but: Path | None = None,
    clear: bool = False,
    threads: int = 0,
) -> Plan:
    """Look at everything. ``but``: a folder to pass over. Nothing is touched but, with ``clear``, what killed acts
    left, which is removed."""
    tree = walk(roots, least=least, but=but)
    if clear and tree.leftovers:
        sharing.clear({left.folder for left in tree.leftovers})
        found, tree = tree.leftovers, walk(roots, least=least, but=but)
        tree.leftovers = found
    groups, failed = equal_files(tree.files, threads=threads)
    plan = Plan(tree, refused=[*tree.unreadable, *((f.path, why) for f, why in failed)])
    busy = writers({f.key for g in groups for f in g})
    chooser = _Chooser(plan, reflink, hardlink)
    for group in groups:
        open_ones = [f for f in group if f.key in busy]
        plan.refused += [(f.path, open_for_writing(busy[f.key])) for f in open_ones]
        chooser.choose([f for f in group if f.key not in busy])
    return plan


@final
class _Chooser:
    def __init__(self, plan: Plan, reflink: bool, hardlink: bool) -> None:
        self._plan, self._reflink, self._hardlink = plan, reflink, hardlink
        self._tried: dict[tuple[int, int], bool] = {}  # device of the source, of the folder -> reflinks work
        self._names: dict[tuple[int, int], int] = {}  # file -> names that it will have

    def choose(self, group: Sequence[File]) -> None:
        """Pair each file with the first that it can share with. What cannot be replaced is kept rather than others,
        then what has most names, then what is oldest."""
        fixed = {f: obstacles.to_replacing(f) is not None for f in group}
        order = sorted(group, key=lambda f: (not fixed[f], -len(f.names), f.stat.st_mtime_ns, f.path))
        kept: list[File] = []
        for file in order:
            why = ""
            for one in kept:
                found = self._way(one, file)
                if isinstance(found, Pair):
                    self._plan.pairs.append(found)
                    if found.how == "hardlink":
                        self._names[one.key] = self._count(one) + len(file.names)
                if not isinstance(found, str):
                    break
                why = why or found
            else:
                if why:
                    self._plan.refused.append((file.path, why))
                kept.append(file)

    def _count(self, file: File) -> int:
        return self._names.get(file.key, file.stat.st_nlink)

    def _way(self, kept: File, copy: File) -> Pair | str | None:
        """How to do it, why not, or None where the two share their blocks already."""
        why = ""
        if self._reflinks(kept, copy):
            if _shared(kept, copy):
                return None
            why = obstacles.to_sharing_blocks(copy) or ""
            if self._reflink and not why:
                return Pair(kept, copy, "reflink", True)
        why = why or obstacles.to_hardlink(kept, copy) or ""
        if not why and self._count(kept) + len(copy.names) > obstacles.link_limit(kept):
            why = f"{shown(kept.path)} has as many names as its file system allows"
        return why or Pair(kept, copy, "hardlink", self._hardlink)

    def _reflinks(self, kept: File, copy: File) -> bool:
        key = kept.stat.st_dev, copy.names[0].place[0]
        if key not in self._tried:
            try:
                with held(kept.names[0]) as source, held(copy.names[0]) as target:
                    self._tried[key] = sharing.can_reflink(source, target.folder)
            except NotLinked:
                return False
        return self._tried[key]


def _shared(kept: File, copy: File) -> bool:
    try:
        with held(kept.names[0]) as one, held(copy.names[0]) as other:
            return sharing.share_blocks(one.fd, other.fd)
    except NotLinked:
        return False
