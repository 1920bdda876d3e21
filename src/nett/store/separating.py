"""Undoing and checking links: separate files again, and whether every name still has its bytes."""

from __future__ import annotations

import os
import stat
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nett.core.errors import ProofFailed, Refused, UsageError
from nett.core.progress import report
from nett.core.receipt import open_sha256
from nett.core.shown import shown
from nett.core.staging import sync_folder
from nett.store import sharing
from nett.store.copying import copy_bytes
from nett.store.handle import Handle, NotLinked, held
from nett.store.link_record import LinkRecord, is_open, journal_of, name_of

BATCH = 64  # files that are put on disk together
Pair = Mapping[str, Any]
Check = dict[str, Any]


def check_pairs(folder: Path) -> list[Check]:
    """One check for each content that files share; each file is read once, under whichever names."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in journal_of(folder).values():
        if pair["end"] == "done":
            groups[pair["sha256"]].append(pair)
    checks = []
    for sha256, pairs in groups.items():
        known: dict[tuple[int, int], str] = {}
        paths = list(dict.fromkeys(path for p in pairs for path in (p["kept"], *p["copies"])))
        found = {path: _looked_at(path, sha256, known) for path in paths}
        wrong = next((p for p, word in found.items() if word == "changed"), None)
        gone = sum(word == "gone" for word in found.values())
        detail = f"{len(paths) - gone:,} names, sha256 equal" + (f"; {gone:,} are not there any more" if gone else "")
        if wrong is not None:
            detail = f"{shown(wrong)} does not hold the bytes any more that it was linked with"
        checks.append({"name": f"equal to {shown(paths[0])}", "ok": wrong is None, "detail": detail})
    return checks


def _looked_at(path: str, sha256: str, known: dict[tuple[int, int], str]) -> str:
    try:
        with held(name_of(path)) as handle:
            now = os.fstat(handle.fd)
            key = now.st_dev, now.st_ino
            if key not in known:
                known[key] = open_sha256(handle.fd) if stat.S_ISREG(now.st_mode) else ""
            return "equal" if known[key] == sha256 else "changed"
    except FileNotFoundError:  # its folder
        return "gone"
    except NotLinked as why:
        if why.gone:
            return "gone"
        raise Refused(str(why), where=shown(path)) from why


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
        work = _groups({n: p for n, p in journal_of(folder).items() if p["end"] == "done" or is_open(p)})
        _check_room(work)
        names = [n for pairs in work for p in pairs for n in p["copies"]]
        lines = [f"would become a file of its own: {shown(n)}" for n in names]
        return {"say": [*lines, f"{len(names):,} in all. Nothing was changed."]}
    with LinkRecord(folder) as record:
        work = _groups(record.standing)
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
        raise ProofFailed(f"{made:,} files are separate again, but not {wrong[0]}{more}", where=folder)
    return {"say": [*said, f"{made:,} {'file is' if made == 1 else 'files are'} separate again"]}


def _groups(pairs: Mapping[int, Pair]) -> list[list[Pair]]:
    """Pairs by the file that their names had before: those become one file again."""
    groups: dict[tuple[int, ...], list[Pair]] = defaultdict(list)
    for _, pair in sorted(pairs.items(), reverse=True):  # what was kept at first may have been linked later
        groups[*pair["copy_inode"], pair["mtime_ns"]].append(pair)
    return list(groups.values())


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


def _separate(pairs: list[Pair]) -> tuple[list[str], int]:
    """One file as it was before: a copy under its first name, its other names links to that."""
    said: list[str] = []
    first: tuple[str, tuple[int, int]] | None = None
    count = 0
    for pair in pairs:
        for path in pair["copies"]:
            try:
                name = name_of(path)
                with held(name) as handle:
                    now = os.fstat(handle.fd)
                    if why := _is_separate(pair, now, first):
                        said += [f"{shown(path)} {why}"]
                        first = first or ((path, (now.st_dev, now.st_ino)) if why == _ALREADY else None)
                        continue
                    if first is None:
                        if not _copy(handle, pair):
                            said += [f"{shown(path)} was written to since and has bytes of its own"]
                            continue
                        made = os.stat(name.name, dir_fd=handle.folder, follow_symlinks=False)
                        first = path, (made.st_dev, made.st_ino)
                    else:
                        _link(handle, *first)
                    count += 1
            except FileNotFoundError:
                said += [f"{shown(path)} is not there any more"]
            except NotLinked as why:
                if not why.gone:
                    raise
                said += [f"{shown(path)} is not there any more"]
    return said, count


_ALREADY = "is a file of its own already"


def _is_separate(pair: Pair, now: os.stat_result, first: tuple[str, tuple[int, int]] | None) -> str | None:
    key = now.st_dev, now.st_ino
    if first is not None and key == first[1]:
        return _ALREADY
    if pair["how"] == "reflink":
        return None
    shared = now.st_nlink > 1 and (list(key) == pair["kept_inode"] or _is(pair["kept"], now))
    return None if shared else _ALREADY


def _is(path: str, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), found)
    except OSError:
        return False


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


def _link(handle: Handle, path: str, key: tuple[int, int]) -> None:
    with held(name_of(path)) as source:
        found = os.fstat(source.fd)
        if (found.st_dev, found.st_ino) != key:
            raise NotLinked(f"{shown(path)} is another file now")

        def make(staged: str) -> None:
            os.link(source.name.name, staged, src_dir_fd=source.folder, dst_dir_fd=handle.folder, follow_symlinks=False)

        sharing.replace(handle.folder, handle.name.name, make)
