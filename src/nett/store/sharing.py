"""The two ways in which equal files share their bytes, and the file system's word on what is shared already.

A reflink shares blocks until one of the files is written to: nothing else can be told from outside. Where the kernel
offers it, it compares and shares in place (FIDEDUPERANGE); else a clone (FICLONE) takes the file's name. A hardlink
makes one file of two names. A name is only ever replaced by a rename: at each moment it leads to all of its bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterable
from uuid import uuid4

from nett.store.handle import Handle, NotLinked
from nett.store.tree import STAGED, File, Name

FICLONE, FIDEDUPERANGE, FIEMAP = 0x40049409, 0xC0189436, 0xC020660B
_ABSENT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS)
_AT_ONCE = 16 << 20  # bytes that the kernel shares in one call
_EXTENTS = 256
_LAST, _SHARED, _UNSURE = 0x1, 0x2000, 0x2 | 0x4 | 0x200  # unknown, not yet on disk, inside the inode


def clone(target: int, source: int) -> None:
    """Make the open, empty file ``target`` share all blocks of ``source``."""
    fcntl.ioctl(target, FICLONE, source)


def deduplicate(target: int, source: int, size: int) -> bool:
    """Let ``target`` share the blocks of ``source`` where the kernel finds them equal; False where it cannot do that.

    NotLinked if it found a difference.
    """
    at = 0
    while at < size:
        ask = bytearray(56)
        struct.pack_into("=QQHHI", ask, 0, at, min(_AT_ONCE, size - at), 1, 0, 0)
        struct.pack_into("=qQQiI", ask, 24, target, at, 0, 0, 0)
        try:
            fcntl.ioctl(source, FIDEDUPERANGE, ask)
        except OSError as error:
            if error.errno in _ABSENT:
                return False
            raise
        _, _, done, status, _ = struct.unpack_from("=qQQiI", ask, 24)
        if status == 1:
            raise NotLinked("its bytes have changed")
        if status < 0 and -status not in _ABSENT:
            raise OSError(-status, os.strerror(-status))
        if status < 0 or done == 0:
            return False
        at += done
    return True


def extents(fd: int) -> list[tuple[int, int, int]] | None:
    """(offset, place on the device, bytes) of a file's blocks if all are shared with another file; None if not, or
    if the file system does not say."""
    found: list[tuple[int, int, int]] = []
    at = 0
    while True:
        ask = bytearray(32 + 56 * _EXTENTS)
        struct.pack_into("=QQIIII", ask, 0, at, (1 << 64) - 1 - at, 1, 0, _EXTENTS, 0)
        try:
            fcntl.ioctl(fd, FIEMAP, ask)
        except OSError:
            return None
        count = struct.unpack_from("=I", ask, 20)[0]
        for i in range(count):
            logical, physical, length, flags = struct.unpack_from("=QQQ16xI", ask, 32 + 56 * i)
            if flags & _UNSURE or not flags & _SHARED:
                return None
            found.append((logical, physical, length))
            if flags & _LAST:
                return found
            at = logical + length
        if count == 0:
            return found or None


def share_blocks(one: int, other: int) -> bool:
    """Whether two files are known to lie on the same blocks of the device already."""
    blocks = extents(one)
    return blocks is not None and blocks == extents(other)


def can_reflink(source: Handle, folder: int) -> bool:
    """Whether a clone of ``source`` can be made in the open ``folder``: tried, with a file that never has a name."""
    try:
        scratch = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError:
        return False
    try:
        clone(scratch, source.fd)
    except OSError:
        return False
    finally:
        os.close(scratch)
    return True


def staged_name() -> str:
    """A name that a later run knows for a leftover."""
    return f".nett-link-{uuid4().hex}"


def replace(folder: int, name: str, make: Callable[[str], None]) -> None:
    """Let ``make`` create a file under a name for the moment, then give it ``name``. The caller syncs the folder:
    until then a power cut may bring back the old file, which is as good."""
    staged = staged_name()
    try:
        make(staged)
        os.replace(staged, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        remove(folder, staged)
        raise


def remove(folder: int, staged: str) -> None:
    """Remove what was in hand, if it is there."""
    try:
        os.unlink(staged, dir_fd=folder)
    except FileNotFoundError:
        return


def clear(folders: Iterable[str]) -> None:
    """Remove what killed acts had in hand: further names or copies of files, never the only one."""
    for folder in sorted(folders):
        with contextlib.suppress(OSError):
            for name in filter(STAGED.fullmatch, os.listdir(folder)):
                os.unlink(os.path.join(folder, name))


def hardlink(source: Handle, kept: File, copy: Handle) -> None:
    """Make the name of ``copy`` a name of ``kept``."""

    def make(staged: str) -> None:
        os.link(
            source.name.name, staged, src_dir_fd=source.folder, dst_dir_fd=copy.folder, follow_symlinks=False
        )  # fmt: skip
        if os.stat(staged, dir_fd=copy.folder, follow_symlinks=False).st_ino != kept.stat.st_ino:
            raise NotLinked(f"{source.name.path} is another file now")

    _still(copy)
    replace(copy.folder, copy.name.name, make)


def reflink(source: Handle, kept: File, copy: Handle, file: File) -> None:
    """Let ``copy`` share the blocks of ``source``: in place, or as a clone that takes its name."""
    if deduplicate(copy.fd, source.fd, file.stat.st_size):
        return
    if len(file.names) > 1 or file.stat.st_nlink > 1:
        raise NotLinked("has several names, which a clone would part, and is not shared in place here")

    def make(staged: str) -> None:
        made = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=copy.folder)
        try:
            clone(made, source.fd)
            dress(made, copy.fd, file.stat)
            os.fsync(made)
        finally:
            os.close(made)

    _still(copy)
    replace(copy.folder, copy.name.name, make)


def dress(made: int, like: int, state: os.stat_result) -> None:
    """Owner, extended attributes, mode and times, as ``state`` says and the open file ``like`` has them."""
    now = os.fstat(made)
    if (now.st_uid, now.st_gid) != (state.st_uid, state.st_gid):
        os.fchown(made, state.st_uid, state.st_gid)
    for name, value in attributes(like).items():
        os.setxattr(made, name, value)
    os.fchmod(made, state.st_mode & 0o7777)
    os.utime(made, ns=(state.st_atime_ns, state.st_mtime_ns))


def attributes(file: int | str) -> dict[str, bytes]:
    """Extended attributes, access lists among them; none where the file system has none."""
    try:
        follow = isinstance(file, int)
        names = os.listxattr(file) if follow else os.listxattr(file, follow_symlinks=False)
        return {n: os.getxattr(file, n) if follow else os.getxattr(file, n, follow_symlinks=False) for n in names}
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            return {}
        raise


def _still(copy: Handle) -> None:
    """NotLinked if the name leads to another file than the one that was opened."""
    try:
        now = os.stat(copy.name.name, dir_fd=copy.folder, follow_symlinks=False)
    except FileNotFoundError:
        raise NotLinked("is not there any more") from None
    if not os.path.samestat(now, os.fstat(copy.fd)):
        raise NotLinked("is another file now")


def named(names: list[Name]) -> list[str]:
    return [n.path for n in names]
