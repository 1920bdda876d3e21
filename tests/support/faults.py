"""A disk that fills up, and a machine that loses power, as far as a process can be made to see them."""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

CALLS = ("write", "pwrite", "fsync", "fdatasync", "rename", "replace", "link", "mkdir", "ftruncate", "posix_fallocate")


@final
class _Written:
    """An open file whose writes are steps as well."""

    def __init__(self, file: Any, step: Callable[[str, Any], None]) -> None:
        self._file, self._step = file, step

    def write(self, data: Any) -> Any:
        self._step("write", self._file)
        return self._file.write(data)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *failure: Any) -> None:
        self._file.__exit__(*failure)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def stepwise(
    below: Path, step: Callable[[str, Any], None], after: Callable[[str, Any], None] = lambda name, first: None
) -> Iterator[None]:
    """Call ``step(name, first argument)`` before every act that changes something on disk below a folder, and
    ``after`` behind it."""
    inside = str(below)
    real = {name: getattr(os, name) for name in CALLS}
    real_open, real_os_open = io.open, os.open

    def ours(first: Any) -> bool:
        if isinstance(first, int):
            try:
                first = os.readlink(f"/proc/self/fd/{first}")
            except OSError:
                return False
        return os.path.abspath(os.fspath(first)).startswith(inside)

    def watched(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not ours(args[0]):
                return real[name](*args, **kwargs)
            step(name, args[0])
            found = real[name](*args, **kwargs)
            after(name, args[0])
            return found

        return call

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        changes = any(c in mode for c in "wxa+") and isinstance(file, str | os.PathLike) and ours(file)
        if changes:
            step("open", file)
        found = real_open(file, mode, *args, **kwargs)
        return _Written(found, step) if changes else found

    def os_opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT and ours(path):
            step("open", path)
        return real_os_open(path, flags, *args, **kwargs)

    try:
        for name in CALLS:
            setattr(os, name, watched(name))
        io.open = builtins.open = opened
        os.open = os_opened
        yield
    finally:
        for name, one in real.items():
            setattr(os, name, one)
        io.open = builtins.open = real_open
        os.open = real_os_open


@contextmanager
def full_disk(below: Path, at: int, code: int = errno.ENOSPC) -> Iterator[list[str]]:
    """From step ``at`` on nothing more fits; yields the list of the steps that were asked for."""
    asked: list[str] = []

    def step(name: str, first: Any) -> None:
        asked.append(name)
        if len(asked) > at:
            raise OSError(code, os.strerror(code), str(first) if isinstance(first, str | os.PathLike) else None)

    with stepwise(below, step):
        yield asked


@final
class PowerCut(BaseException):
    """The moment after which nothing happens."""


@final
class Platters:
    """What of a folder a power cut would surely leave: bytes that were fsynced, names whose folder was.

    Everything else may be there or not, each by itself: a name its old file or its new one, a file that was not
    fsynced all its bytes, some, or none. Inodes are held open, so that no number is used twice.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bytes: dict[int, bytes] = {}
        self.names: dict[Path, dict[str, int]] = {}
        self._held: dict[int, int] = {}
        for folder, _, files in os.walk(root):
            self.sync_folder(Path(folder))
            for name in files:
                self.sync_file(Path(folder) / name)

    def _inode(self, path: Path) -> int:
        found = os.stat(path).st_ino
        if found not in self._held:
            self._held[found] = os.open(path, os.O_RDONLY)
        return found

    def sync_file(self, path: Path) -> None:
        self.bytes[self._inode(path)] = path.read_bytes()

    def sync_folder(self, path: Path) -> None:
        self.names[path] = {p.name: self._inode(p) for p in path.iterdir()}

    def synced(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.is_dir():
            self.sync_folder(path)
        elif path.exists():
            self.sync_file(path)

    def close(self) -> None:
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    def survive(self, out: Path, chance: random.Random) -> None:
        """Write what the cut leaves to ``out``."""
        self._folder(self.root, out, chance)

    def _folder(self, folder: Path, out: Path, chance: random.Random) -> None:
        out.mkdir()
        sure = self.names.get(folder, {})
        now = {p.name: self._inode(p) for p in folder.iterdir()} if folder.is_dir() else {}
        for name in sorted(sure.keys() | now.keys()):
            inode = chance.choice([sure.get(name), now.get(name)])
            if inode is None:
                continue
            if os.path.isdir(f"/proc/self/fd/{self._held[inode]}"):
                self._folder(folder / name, out / name, chance)
            else:
                (out / name).write_bytes(self._content(inode, chance))

    def _content(self, inode: int, chance: random.Random) -> bytes:
        size = os.fstat(self._held[inode]).st_size
        now = os.pread(self._held[inode], size, 0)
        if self.bytes.get(inode) == now:
            return now
        return chance.choice([self.bytes.get(inode, b""), now, now[: chance.randrange(size + 1)], b"\0" * size])


def cut_power(below: Path, at: int, work: Callable[[], Any], out: Path, chance: random.Random) -> bool:
    """Do ``work`` until step ``at``, and leave in ``out`` what of ``below`` survives; whether it came to that step."""
    platters = Platters(below)
    taken = 0

    def step(name: str, first: Any) -> None:
        nonlocal taken
        if taken == at and not out.exists():
            platters.survive(out, chance)
        if taken == at:
            raise PowerCut
        taken += 1

    def after(name: str, first: Any) -> None:
        if name in ("fsync", "fdatasync"):
            platters.synced(first)

    try:
        with stepwise(below, step, after):
            work()
    except PowerCut:
        return True
    finally:
        platters.close()
    return False
