"""Freeing what no model of a store needs any more."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from nett.core.registry import Between, method

if TYPE_CHECKING:
    from nett.store.library import Library


@method(title="Collect a store's garbage", grain="corpus", guarantee="exact", command=True)
def gc(assets: Sequence[str], *, grace: Annotated[float, Between(0)] = 24.0, dry_run: bool = False) -> dict[str, Any]:
    """Delete the objects that no model needs, once they have been unneeded for the grace period.

    Args:
        grace: hours that an object must have been unneeded, and leftovers of killed runs untouched, before it goes.
        dry_run: say what would be freed, and do nothing.
    When to use: after nett store remove.
    When not: while you may want back what you removed.
    Guarantee: exact. What a model, a difference to it, or a reader needs stays.
    Cost: reads the models' records and the objects' headers.
    """
    from nett.store.checking import with_bases
    from nett.store.library import Library, only_store

    root = only_store(assets, "gc")
    now = time.time()
    with Library.open(root) as library, library.writing():
        needed: set[str] = set()
        for model in library.models():  # a record that cannot be read stops everything here: nothing is deleted
            needed |= model.objects
        needed = with_bases(library, needed | _leased(root))
        freed = count = waiting = 0
        for path in sorted((root / "objects").glob("??/*")):
            mark = _mark(root, path.name)
            if path.name in needed:
                mark.unlink(missing_ok=True)
                continue
            if not mark.exists() and grace > 0:
                waiting += path.stat().st_size
                if not dry_run:
                    mark.parent.mkdir(exist_ok=True)
                    mark.touch()
                continue
            if mark.exists() and now - mark.stat().st_mtime < grace * 3600:
                waiting += path.stat().st_size
                continue
            freed, count = freed + path.stat().st_size, count + 1
            if not dry_run:
                path.unlink()
                mark.unlink(missing_ok=True)
        _sweep_scratch(library, now - grace * 3600, dry_run)
        if not dry_run:
            library.log("gc", objects=count, bytes=freed)
    lines = [f"{'would free' if dry_run else 'freed'}: {freed:,} bytes in {count} object(s)"]
    if waiting:
        lines.append(f"{waiting:,} bytes more are unneeded, and go {grace:g} hours after they were first found so")
    return {"say": lines, "freed": freed, "objects": count, "waiting": waiting}


def _mark(root: Path, digest: str) -> Path:
    """The file whose time says since when an object has not been needed."""
    return root / "unneeded" / digest


def _leased(root: Path) -> set[str]:
    """What readers hold. The lease of a reader that died is not locked any more, and goes."""
    import fcntl

    found: set[str] = set()
    for lease in (root / "leases").iterdir():
        if lease.name.startswith("."):  # not whole yet; the reader still checks that its model is there
            continue
        try:
            with lease.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    found |= set(file.read().decode().split())
                    continue
                lease.unlink(missing_ok=True)
        except FileNotFoundError:
            continue
    return found


def _sweep_scratch(library: Library, before: float, dry_run: bool) -> None:
    """Leftovers of killed runs; the writer's lock is ours, so nobody is writing them."""
    for leftover in (library.root / "tmp").iterdir():
        if not dry_run and os.path.getmtime(leftover) < before:
            leftover.unlink(missing_ok=True)
