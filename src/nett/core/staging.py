"""Outputs appear whole or not at all: written in a hidden folder beside, fsynced, renamed; and resumed after a kill.

The journal is a file of JSON lines. Its first line is the key of the work (method, parameters, inputs): another
key means other work, and what it left is thrown away. A torn last line, from a kill while it was written, is cut.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from nett.core.errors import NettError, ProofFailed, Refused

JOURNAL = "nett-journal.jsonl"


def work_key(work: Mapping[str, Any]) -> str:
    """A hash of everything that decides what the output will be."""
    return hashlib.sha256(json.dumps(work, sort_keys=True, default=str).encode()).hexdigest()


def file_state(path: Path) -> list[Any]:
    """What tells that an input is still the same file: path, size, modification time."""
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def check_target(out: Path, needed: int, *, overwrite: bool, inputs: Iterable[Path] = (), file: bool = False) -> None:
    """Refuse, before any work, a target that exists, cannot be written, has no room, or would replace an input.

    ``file``: the output is one file and not a folder.
    """
    if out.is_symlink() or (out.exists() and out.is_dir() == file):
        raise Refused(f"exists and is not a {'plain file' if file else 'folder'}", where=out)
    there = out if out.exists() else replaced_path(out)  # a kill while it was being replaced
    if (there.is_file() if file else there.is_dir() and any(there.iterdir())) and not overwrite:
        state = "exists" if file else "exists and is not empty"
        raise Refused(state, where=out, hint="Choose another output (--out), or add --overwrite.")
    for path in inputs:
        if path.resolve().is_relative_to(out.resolve()):
            raise Refused(
                f"holds an input of this work ({path}), so it is not replaced", where=out, hint="Choose another --out."
            )
    parent = out.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise Refused("is not a folder, so nothing can be written in it", where=parent)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise Refused(
            "cannot be written by this user",
            where=parent,
            hint="Choose another --out, or mend the permissions.",
        )
    left = staging_path(out)
    held = sum(f.stat().st_size for f in left.rglob("*") if f.is_file()) if left.is_dir() else 0
    free = shutil.disk_usage(parent).free + held
    if needed > free:
        raise Refused(f"needs {needed:,} bytes of disk, but only {free:,} are free there", where=out)


def check_folders(*files: Path | None) -> None:
    """Refused where a file that is written at the end has no folder to be in."""
    for file in files:
        if file is not None and not Path(file).absolute().parent.is_dir():
            raise Refused("there is no such folder to write in", where=Path(file).absolute().parent)


def staging_path(out: Path) -> Path:
    """Where the output grows until it is whole."""
    return out.absolute().parent / f".{out.name}.nett-partial"


def replaced_path(out: Path) -> Path:
    """Where the output that is being replaced lies for a moment."""
    return out.absolute().parent / f".{out.name}.nett-replaced"


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put_file(path: Path, data: bytes) -> None:
    """Write a small file beside others, whole or not at all; its folder must exist. OSError where it cannot be."""
    fd, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_folder(path.absolute().parent)


def whole_lines(journal: int) -> list[dict[str, Any]]:
    """The entries of an open journal; what a kill left of a last line is cut off."""
    blob = b""
    while block := os.pread(journal, 1 << 20, len(blob)):
        blob += block
    lines, good = [], 0
    for line in blob.splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(entry, dict):
            break
        lines.append(entry)
        good += len(line)
    os.ftruncate(journal, good)
    return lines


def append_lines(journal: int, *entries: Mapping[str, Any]) -> None:
    """Add entries to an open journal; on disk when this returns."""
    lines = b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries)
    os.lseek(journal, 0, os.SEEK_END)
    while lines:  # a disk that fills up takes a part first
        lines = lines[os.write(journal, lines) :]
    os.fdatasync(journal)


@final
class Staging:
    """The folder in which one output grows, its lock and its journal. Use :func:`staged`."""

    def __init__(self, out: Path, key: str) -> None:
        self.out, self.path, self.key = out.absolute(), staging_path(out), key
        self.entries: list[dict[str, Any]] = []
        self._journal: int = -1

    @property
    def resumed(self) -> bool:
        """Whether an interrupted run of the same work left something to go on from."""
        return bool(self.entries)

    def open(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._journal = os.open(self.path / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Refused(f"cannot be written: {error.strerror}", where=self.path) from error
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._journal)
            self._journal = -1
            raise Refused("another nett is writing this output right now", where=self.out) from error
        if not self._is_ours():  # another finished between our opening the journal and our locking it
            self.close()
            raise Refused("another nett has just written this output", where=self.out)
        self._heal()
        lines = whole_lines(self._journal)
        if lines and lines[0].get("key") == self.key:
            self.entries = lines[1:]
            return
        for leftover in self.path.iterdir():
            if leftover.name != JOURNAL:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        os.ftruncate(self._journal, 0)
        append_lines(self._journal, {"key": self.key})

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._journal), os.stat(self.path / JOURNAL))
        except FileNotFoundError:
            return False

    def _heal(self) -> None:
        """Undo or end a replacement that a kill cut in two."""
        old = replaced_path(self.out)
        if old.exists() and self.out.exists():
            shutil.rmtree(old)
        elif old.exists():
            os.rename(old, self.out)

    def record(self, **entry: Any) -> None:
        """Add a line that survives a kill; call it only after what it speaks of is on disk."""
        self.entries.append(entry)
        append_lines(self._journal, entry)

    def write_file(self, name: str, data: bytes) -> None:
        """A small side file, synced."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def add_file(self, name: str, data: bytes) -> dict[str, Any]:
        """:meth:`write_file`, and how a receipt speaks of it."""
        self.write_file(name, data)
        return {"path": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def commit(self) -> None:
        """Make the output appear under its name, whole."""
        (self.path / JOURNAL).unlink()
        for folder, _, _ in os.walk(self.path):
            sync_folder(Path(folder))
        old = replaced_path(self.out)
        if self.out.is_dir() and any(self.out.iterdir()):
            os.rename(self.out, old)
        os.rename(self.path, self.out)
        sync_folder(self.out.parent)
        if old.exists():
            shutil.rmtree(old)

    def commit_file(self) -> None:
        """As :meth:`commit`, for an output that is one file: what belongs beside it first, itself last."""
        (self.path / JOURNAL).unlink()
        sync_folder(self.path)
        for name in sorted(os.listdir(self.path), key=lambda n: (n == self.out.name, n)):
            os.replace(self.path / name, self.out.parent / name)
        sync_folder(self.out.parent)
        self.path.rmdir()

    def close(self) -> None:
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1

    def discard(self) -> None:
        """Remove everything: the work was refused."""
        shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def staged(out: Path, key: str) -> Iterator[Staging]:
    """A staging folder, locked. Refusals and failed proofs leave nothing; other failures, what a rerun resumes from."""
    staging = Staging(out, key)
    staging.open()
    try:
        yield staging
    except (Refused, ProofFailed):
        staging.discard()
        raise
    except OSError as error:
        raise NettError(
            f"{error.strerror or error}",
            where=error.filename or out,
            hint="Run the same command again to resume.",
        ) from error
    finally:
        staging.close()
