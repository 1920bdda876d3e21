"""Why a file's bytes cannot be shared, told beforehand from what can be looked at without touching anything."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from nett.core.shown import shown
from nett.store.handle import NotLinked, held
from nett.store.sharing import attributes
from nett.store.tree import File

_GETFLAGS = 0x80086601
_FIXED, _APPEND_ONLY = 0x10, 0x20
_STICKY = 0o1000


def link_limit(file: File) -> int:
    """How many names a file may have where it lies."""
    try:
        return os.pathconf(file.path, "PC_LINK_MAX")
    except OSError:
        return 1 << 16


def to_replacing(file: File) -> str | None:
    """Why the file's names cannot be given to another file."""
    if missing := file.stat.st_nlink - len(file.names) - file.left:
        also = "a further name" if missing == 1 else f"{missing:,} further names"
        return f"has {also} outside the given folders, so nothing would be freed"
    if why := is_fixed(file):
        return why
    user = os.geteuid()
    for name in file.names:
        if not os.access(name.folder, os.W_OK | os.X_OK, effective_ids=True):
            return "its folder cannot be written by this user"
        folder = os.stat(name.folder)
        if folder.st_mode & _STICKY and user not in (0, file.stat.st_uid, folder.st_uid):
            return "belongs to another user, in a folder where only the owner may rename"
    return None


def to_sharing_blocks(file: File) -> str | None:
    """Why the file cannot be made to share blocks, in place or by a clone that takes its name."""
    user = os.geteuid()
    if user not in (0, file.stat.st_uid) and not os.access(file.path, os.W_OK, effective_ids=True):
        return "belongs to another user"
    return is_fixed(file)


def to_hardlink(kept: File, copy: File) -> str | None:
    """Why ``copy`` cannot become a name of ``kept``."""
    if kept.stat.st_dev != copy.stat.st_dev:
        return f"lies on another file system than {shown(kept.path)}"
    if why := to_replacing(copy) or unlike(kept, copy):
        return why
    if why := is_fixed(kept):
        return f"{shown(kept.path)} {why}"
    user = os.geteuid()
    if user not in (0, kept.stat.st_uid) and _protected():
        if not os.access(kept.path, os.R_OK | os.W_OK, effective_ids=True):
            return f"{shown(kept.path)} belongs to another user, and fs.protected_hardlinks forbids to link it"
    return None


def unlike(kept: File, copy: File) -> str | None:
    """What two files differ in that a hardlink would make one."""
    a, b = kept.stat, copy.stat
    other = shown(kept.path)
    if (a.st_uid, a.st_gid) != (b.st_uid, b.st_gid):
        return f"has another owner ({b.st_uid}:{b.st_gid}) than {other} ({a.st_uid}:{a.st_gid})"
    if a.st_mode != b.st_mode:
        return f"has other permissions ({b.st_mode & 0o7777:o}) than {other} ({a.st_mode & 0o7777:o})"
    try:
        first, second = attributes(kept.path), attributes(copy.path)
    except OSError as error:
        return f"its extended attributes cannot be read: {error.strerror}"
    if differing := sorted(n for n in first.keys() | second.keys() if first.get(n) != second.get(n)):
        what = "another access list (ACL)" if "posix_acl" in differing[0] else f"another attribute {differing[0]}"
        return f"has {what} than {other}"
    return None


def is_fixed(file: File) -> str | None:
    """Whether the file is marked immutable or append-only (``chattr``)."""
    try:
        with held(file.names[0]) as handle:
            flags = bytearray(8)
            fcntl.ioctl(handle.fd, _GETFLAGS, flags)
    except NotLinked as why:
        return str(why)
    except OSError:  # no such marks here
        return None
    marks = struct.unpack_from("=I", flags)[0]
    if marks & (_FIXED | _APPEND_ONLY):
        return f"is marked {'immutable' if marks & _FIXED else 'append-only'} (chattr)"
    return None


def _protected() -> bool:
    try:
        return Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "0"
    except OSError:
        return False
