"""Freeing what no model of a store needs any more."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

from nett.core.registry import Between, method

if TYPE_CHECKING:
    from nett.store.holdings import Held
    from nett.store.library import Library


@method(title="Collect a store's garbage", grain="corpus", guarantee="exact", extra="store", command=True)
def gc(
    assets: Sequence[str],
    *,
    grace: Annotated[float, Between(0)] = 24.0,
    recode: Literal["smaller", "always", "never"] = "smaller",
    threads: Annotated[int, Between(0, 64)] = 0,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Delete the objects that no model needs, once they have been unneeded for the grace period.

    An object may be unneeded by itself and still be what differences of other models rest on. Those are coded anew,
    on the base that the planner chooses now or by themselves, so that it can go.

    Args:
        grace: hours that an object must have been unneeded, and leftovers of killed runs untouched, before it goes.
        recode: when differences to what could go are coded anew: where the store becomes smaller by it, always, never.
        threads: how many threads work; 0 for all that this process may use. What is stored does not depend on it.
        dry_run: say what would be freed and what would be coded anew, and do nothing.
    When to use: after nett store remove.
    When not: while you may want back what you removed.
    Guarantee: exact. What a model, a difference to it, or a reader needs stays; what is coded anew is decoded and
        compared before it takes its place.
    Cost: reads the models' records and the objects' headers; what is coded anew is read and written once, and needs
        its own size free on the disk.
    Source: no paper for mark and sweep with a grace period; the choice of bases as in store/add (Bhattacherjee et al.
        2015, problem 6).
    """
    from nett.core.runner import Pool, thread_count
    from nett.core.staging import sync_folder
    from nett.store.holdings import Held, closure, holdings
    from nett.store.library import Library, only_store
    from nett.store.objects import object_path
    from nett.store.recoding import carry_out, dying_of, plan_moves

    root = only_store(assets, "gc")
    now = time.time()
    pool = Pool(thread_count(threads))
    with contextlib.closing(pool), Library.open(root) as library, library.writing():
        models = list(library.models())  # a record that cannot be read stops everything here: nothing is deleted
        leased = _leased(root)
        needed = set().union(leased, *(m.objects for m in models))
        held = holdings(library, needed)
        gone = _could_go(root, held, needed, now - grace * 3600 if grace > 0 else None, dry_run)
        pinned = leased | (held.keys() - needed - gone)  # what waits may be added again, with all it rests on
        dying = dying_of(held, gone, needed, pinned)
        plan = plan_moves(library, models, held, dying, recode)
        lines = plan.say(would=dry_run)
        after = dict(held)
        if dry_run:
            after |= {m.digest: Held(m.base, m.depth, round(m.will)) for batch in plan.moves for m in batch}
        else:
            after |= carry_out(library, models, plan, pool)
        stays = closure(after, needed | pinned)
        freed = count = 0
        # What rests on others goes before them, and surely: what is left is whole at every moment.
        for _, batch in itertools.groupby(
            sorted(gone - stays, key=lambda d: (-held[d].depth, d)), lambda d: held[d].depth
        ):
            folders = set()
            for digest in batch:
                freed, count = freed + held[digest].stored, count + 1
                if not dry_run:
                    object_path(root, digest).unlink()
                    _mark(root, digest).unlink(missing_ok=True)
                    folders.add(object_path(root, digest).parent)
            for folder in sorted(folders):
                sync_folder(folder)
        waiting = sum(held[d].stored for d in held.keys() - needed - gone)
        _sweep_scratch(library, now - grace * 3600, dry_run)
        if not dry_run:
            more = sum(after[d].stored - held[d].stored for batch in plan.moves for d in (m.digest for m in batch))
            library.log("gc", objects=count, bytes=freed, recoded=plan.nbytes or None, more=more or None)
    lines.append(f"{'would free' if dry_run else 'freed'}: {freed:,} bytes in {count} object(s)")
    if waiting:
        lines.append(f"{waiting:,} bytes more are unneeded, and go {grace:g} hours after they were first found so")
    return {
        "say": lines, "freed": freed, "objects": count, "waiting": waiting, "recoded": plan.nbytes, "kept": plan.kept,
    }  # fmt: skip


def _could_go(root: Path, held: Mapping[str, Held], needed: set[str], before: float | None, dry_run: bool) -> set[str]:
    """The objects that no model needs by itself, and that were first found so before the time ``before``; all of
    them where that is None. Marks those that are found so now, and clears the marks of what is needed."""
    gone = set()
    for digest in held:
        mark = _mark(root, digest)
        if digest in needed:
            if not dry_run:
                mark.unlink(missing_ok=True)
        elif before is None or (mark.exists() and mark.stat().st_mtime <= before):
            gone.add(digest)
        elif not dry_run and not mark.exists():
            mark.parent.mkdir(exist_ok=True)
            mark.touch()
    return gone


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
            with _opened(lease) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    found |= set(file.read().decode().split())
                    continue
                lease.unlink(missing_ok=True)
        except FileNotFoundError:
            continue
    return found


def _opened(lease: Path) -> BinaryIO:
    """For writing where that is allowed, since NFS locks only such files; nothing is written."""
    try:
        return lease.open("r+b")
    except PermissionError:  # another user's
        return lease.open("rb")


def _sweep_scratch(library: Library, before: float, dry_run: bool) -> None:
    """Leftovers of killed runs; the writer's lock is ours, so nobody is writing them."""
    for leftover in (library.root / "tmp").iterdir():
        if not dry_run and os.path.getmtime(leftover) < before:
            leftover.unlink(missing_ok=True)
