"""Undoing links: files of their own again, where they lie, with the bytes that the journal says."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nett.core.errors import ProofFailed, Refused, UsageError
from nett.core.progress import report
from nett.core.receipt import open_sha256
from nett.core.shown import shown
from nett.core.staging import sync_folder
from nett.store import sharing
from nett.store.copying import copy_bytes
from nett.store.handle import Handle, NotLinked, held
from nett.store.link_record import LinkRecord, journal_of, name_of, was_done

BATCH = 64  # files that are put on disk together
Pair = Mapping[str, Any]
Key = tuple[int, int]


def separate(
    folder: Path,
    receipt: Mapping[str, Any],
    *,
    task: str | None = None,
    out: Path | None = None,
    base: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Make every linked file a file of its own again, where it lies. Goes on where an earlier run was killed.

    Raises Refused if there is no room for all of them; ProofFailed, at the end, if some could not be separated.
    """
    for name, value in (("--task", task), ("--out", out), ("--base", base)):
        if value is not None:
            raise UsageError(f"{name} does not apply: files become separate where they lie", where=folder)
    began = time.monotonic()
    if dry_run:
        work = _groups(
            {n: p for n, p in journal_of(folder).items() if p["end"] == "done" or (p["end"] is None and was_done(p))}
        )
        _check_room(work)
        names = [n for pairs in work for p in pairs for n in p["copies"]]
        lines = [f"would become a file of its own: {shown(n)}" for n in names]
        return {"say": [*lines, f"{len(names):,} in all. Nothing was changed."]}
    with LinkRecord(folder) as record:
        work = _groups(record.standing)
        sharing.clear({os.path.dirname(c) for pairs in work for p in pairs for c in p["copies"]})
        _check_room(work)
        report.begin("restoring", sum(pairs[0]["bytes"] for pairs in work))
        said, wrong, made = list[str](), list[str](), 0
        try:
            for at in range(0, len(work), BATCH):
                done: list[Pair] = []
                for pairs in work[at : at + BATCH]:
                    try:
                        words, count = _separate(pairs)
                    except (NotLinked, OSError) as why:
                        reason = f"{why.strerror}" if isinstance(why, OSError) else str(why)
                        wrong.append(f"{shown(pairs[0]['copies'][0])}: {reason}")
                    else:
                        said, made, done = said + words, made + count, done + pairs
                    report.step(pairs[0]["bytes"])
                for there in sorted({os.path.dirname(c) for p in done for c in p["copies"]}):
                    if os.path.isdir(there):
                        sync_folder(Path(there))
                record.end([(p["pair"], "restored", None) for p in done])
        finally:
            report.end()
            record.sign(receipt["parameters"], None, seconds=time.monotonic() - began)
    if wrong:
        more = f"\n  and {len(wrong) - 1:,} more" if len(wrong) > 1 else ""
        raise ProofFailed(f"{_made(made)} separate again, but not {wrong[0]}{more}", where=folder)
    return {"say": [*said, f"{_made(made)} separate again"]}


def _made(count: int) -> str:
    return f"{count:,} {'file is' if count == 1 else 'files are'}"


def _groups(pairs: Mapping[int, Pair]) -> list[list[Pair]]:
    """What is to be one file again: a pair; with what a kill between two names of one file left for a later pair.
    The latest first, since what was kept by one run may have been linked by the next."""
    groups: dict[tuple[Any, ...], list[list[Pair]]] = defaultdict(list)
    ordered: list[list[Pair]] = []
    for _, pair in sorted(pairs.items(), reverse=True):
        alike = groups[*pair["copy_inode"], pair["sha256"]]
        found = next((g for g in alike if set(g[-1]["copies"]) < set(pair["copies"])), None)
        if found is None:
            alike.append(found := [])
            ordered.append(found)
        found.append(pair)
    return ordered


def _check_room(work: list[list[Pair]]) -> None:
    needed: dict[int, int] = defaultdict(int)
    where: dict[int, str] = {}
    for pairs in work:
        folder = os.path.dirname(pairs[0]["copies"][0])
        if os.path.isdir(folder):
            device = os.stat(folder).st_dev
            needed[device] += pairs[0]["freed"]
            where[device] = folder
    for device, folder in where.items():
        found = os.statvfs(folder)
        if (free := found.f_bavail * found.f_frsize) < needed[device]:
            raise Refused(
                f"separate files need {needed[device]:,} bytes, but only {free:,} are free there", where=folder
            )


class _First(NamedTuple):
    """The name that has a file of its own already, that file, and the shared one that it had."""

    path: str
    made: Key
    was: Key


def _separate(pairs: list[Pair]) -> tuple[list[str], int]:
    """One file as it was before: a copy under its first name, its other names links to that."""
    said: list[str] = []
    count = 0
    first = next((f for pair in pairs for path in pair["copies"] if (f := _own(pair, path))), None)
    for pair, path in ((p, c) for p in pairs for c in p["copies"]):
        try:
            with held(name_of(path)) as handle:
                now = os.fstat(handle.fd)
                if not _shares(pair, now):
                    said += [] if first and _key(now) == first.made else [f"{shown(path)} is another file by now"]
                    continue
                if first is not None and _key(now) == first.was:
                    _link(handle, first)
                elif _copy(handle, pair):
                    made = os.stat(handle.name.name, dir_fd=handle.folder, follow_symlinks=False)
                    first = first or _First(path, _key(made), _key(now))
                else:
                    said += [f"{shown(path)} was written to since and has bytes of its own"]
                    continue
                count += 1
        except (FileNotFoundError, NotLinked) as why:
            if isinstance(why, NotLinked) and not why.gone:
                raise
            said += [f"{shown(path)} is not there any more"]
    return said, count


def _own(pair: Pair, path: str) -> _First | None:
    """The name as the first, if it shares nothing and has the bytes: an earlier run was killed after it, or before."""
    try:
        with held(name_of(path)) as handle:
            now = os.fstat(handle.fd)
            if pair["how"] == "hardlink" and not _shares(pair, now) and open_sha256(handle.fd) == pair["sha256"]:
                return _First(path, _key(now), (pair["kept_inode"][0], pair["kept_inode"][1]))
    except (OSError, NotLinked):
        return None
    return None


def _key(found: os.stat_result) -> Key:
    return found.st_dev, found.st_ino


def _shares(pair: Pair, now: os.stat_result) -> bool:
    """Whether the file has another name that linking gave it; of reflinks that is not asked, but taken so."""
    if pair["how"] == "reflink":
        return True
    if now.st_nlink == 1:
        return False
    try:
        kept = os.stat(pair["kept"], follow_symlinks=False)
    except OSError:
        return bool(list(_key(now)) == pair["kept_inode"])
    return os.path.samestat(kept, now) or bool(list(_key(now)) == pair["kept_inode"])


def _copy(handle: Handle, pair: Pair) -> bool:
    """Copy the open file, check what was written, give the copy its name. False if a reflink's bytes have changed,
    which then are its own.

    NotLinked if a hardlinked file was edited: nobody knows under which of its names.
    """
    before = os.fstat(handle.fd)
    same = before.st_size == pair["bytes"]

    def make(staged: str) -> None:
        made = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=handle.folder)
        try:
            if copy_bytes(handle.fd, made, before.st_size) != pair["sha256"]:
                raise _Changed
            sharing.dress(made, handle.fd, before)
            if pair["how"] == "hardlink":  # what the kept file's own have stood for
                os.fchmod(made, pair["mode"])
                os.utime(made, ns=(before.st_atime_ns, pair["mtime_ns"]))
            os.fsync(made)
            os.posix_fadvise(made, 0, 0, os.POSIX_FADV_DONTNEED)  # what lies on the disk is what counts
            if open_sha256(made) != pair["sha256"]:
                raise NotLinked("the copy came out with other bytes than were written")
        finally:
            os.close(made)

    try:
        if not same:
            raise _Changed
        sharing.replace(handle.folder, handle.name.name, make)
    except _Changed:
        if pair["how"] == "reflink":
            return False
        raise NotLinked(
            f"was edited in place, which changed {shown(pair['kept'])} too; copy the one that you want by hand"
        ) from None
    return True


class _Changed(Exception):
    """The bytes are not those of the journal."""


def _link(handle: Handle, first: _First) -> None:
    with held(name_of(first.path)) as source:
        if _key(os.fstat(source.fd)) != first.made:
            raise NotLinked(f"{shown(first.path)} is another file now")

        def make(staged: str) -> None:
            os.link(source.name.name, staged, src_dir_fd=source.folder, dst_dir_fd=handle.folder, follow_symlinks=False)

        sharing.replace(handle.folder, handle.name.name, make)
