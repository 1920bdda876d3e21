"""A file held open while something is done with it: the one that was seen, unchanged, and written by nobody."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

from nett.store.tree import File, Name

BLOCK = 1 << 22


class NotLinked(Exception):
    """Why one file stays as it is; the others go on. ``gone``: it is not there any more."""

    def __init__(self, why: str, *, gone: bool = False) -> None:
        super().__init__(why)
        self.gone = gone


@final
class Handle:
    """A name's folder and the file behind it, both open."""

    def __init__(self, folder: int, fd: int, name: Name) -> None:
        self.folder, self.fd, self.name = folder, fd, name

    def check(self, file: File) -> None:
        """NotLinked unless this is ``file`` as it was seen."""
        if not file.is_state(os.fstat(self.fd)):
            raise NotLinked("has changed since it was read")


@contextmanager
def held(name: Name) -> Iterator[Handle]:
    """Open a name without following a link at its end or being led elsewhere by one on the way."""
    folder = fd = -1
    try:
        try:
            folder = os.open(name.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            now = os.fstat(folder)
            if (now.st_dev, now.st_ino) != name.place:
                raise NotLinked("its folder is another one now")
            # Not blocking: it may have become a pipe.
            fd = os.open(name.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            raise NotLinked("is not there any more", gone=True) from None
        except OSError as error:
            raise NotLinked(f"cannot be opened: {error.strerror}") from None
        yield Handle(folder, fd, name)
    finally:
        for one in (fd, folder):
            if one >= 0:
                os.close(one)


@final
class Lease:
    """Word from the kernel that nobody has the file open for writing, and that it would tell us."""

    def __init__(self, handle: Handle) -> None:
        self._handle, self._given = handle, False

    def __enter__(self) -> Lease:
        fd = self._handle.fd
        try:
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # by default a broken lease ends the process
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            self._given = True
        except OSError as error:
            if error.errno == errno.EAGAIN:
                raise NotLinked(open_for_writing(writer_of(fd))) from None
        self.check()  # leases are for one's own files, on file systems that have them
        return self

    def check(self) -> None:
        """NotLinked if a writer has come, who then waits until we let go."""
        if self._given:
            if fcntl.fcntl(self._handle.fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
                raise NotLinked(open_for_writing(None))
        elif (who := writer_of(self._handle.fd)) is not None:
            raise NotLinked(open_for_writing(who))

    def __exit__(self, *_: object) -> None:
        if self._given:
            fcntl.fcntl(self._handle.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def open_for_writing(who: str | None) -> str:
    return f"is open for writing{f' by {who}' if who else ''}"


def writer_of(fd: int) -> str | None:
    found = os.fstat(fd)
    return writers({(found.st_dev, found.st_ino)}).get((found.st_dev, found.st_ino))


def writers(wanted: set[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Which of the files (device, inode) a process has open for writing, as far as this user may look."""
    found: dict[tuple[int, int], str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fds = os.listdir(process / "fd")
        except OSError:  # ended meanwhile, or not ours to look at
            continue
        for fd in fds:
            try:
                seen = os.stat(process / "fd" / fd)
                if (key := (seen.st_dev, seen.st_ino)) in wanted and _writes(process, fd):
                    found[key] = f"{(process / 'comm').read_text().strip()} (process {process.name})"
            except OSError:
                continue
    return found


def _writes(process: Path, fd: str) -> bool:
    for line in (process / "fdinfo" / fd).read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False


def compare(one: Handle, other: Handle, size: int) -> str:
    """sha256 of two files whose bytes are equal, each byte looked at; NotLinked where they are not."""
    digest = hashlib.sha256()
    for at in range(0, size, BLOCK):
        count = min(BLOCK, size - at)
        a, b = os.pread(one.fd, count, at), os.pread(other.fd, count, at)
        if a != b or len(a) != count:
            raise NotLinked(f"its bytes are not those of {one.name.path} any more")
        digest.update(a)
    return digest.hexdigest()
