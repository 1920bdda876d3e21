"""One pair: look again at everything, then act."""

from __future__ import annotations

import errno
import os

from nett.core.shown import shown
from nett.store import sharing
from nett.store.handle import Handle, Lease, NotLinked, compare, held
from nett.store.link_plan import Pair
from nett.store.obstacles import unlike

_WORDS = {
    errno.EPERM: "this user, or a mark on one of the files, does not allow it",
    errno.EACCES: "its folder cannot be written by this user",
    errno.EMLINK: "the file that is kept has as many names as its file system allows",
    errno.EXDEV: "lies on another file system than the file that is kept",
    errno.EROFS: "lies on a file system that is read-only",
    errno.ENOSPC: "no space is left on its file system",
    errno.EDQUOT: "this user's quota is used up",
}


def act(pair: Pair, on_disk: set[tuple[int, int]]) -> None:
    """Let the copy share the bytes of the kept file; NotLinked, with all names as they were, where that cannot be.

    The caller syncs the folders of the copy. ``on_disk``: kept files that were synced already; grows.
    """
    kept, copy = pair.kept, pair.copy
    try:
        with held(kept.names[0]) as source, held(copy.names[0]) as target:
            source.check(kept)
            target.check(copy)
            with Lease(source) as first, Lease(target) as second:
                if compare(source, target, copy.stat.st_size) != kept.sha256:
                    raise NotLinked("has changed since it was read")
                source.check(kept)
                target.check(copy)
                first.check()
                second.check()
                _share(pair, source, target, on_disk)
            now = os.fstat(source.fd)  # our own act has changed its count of names
            if (now.st_size, now.st_mtime_ns) == (kept.stat.st_size, kept.stat.st_mtime_ns):
                kept.stat = now
    except OSError as error:
        raise NotLinked(_WORDS.get(error.errno or 0, f"cannot be done: {error.strerror}")) from error


def _share(pair: Pair, source: Handle, target: Handle, on_disk: set[tuple[int, int]]) -> None:
    kept, copy = pair.kept, pair.copy
    if pair.how == "reflink":
        sharing.reflink(source, kept, target, copy)
        return
    if why := unlike(kept, copy):
        raise NotLinked(why)
    if (here := os.fstat(target.fd).st_nlink) != len(copy.names):
        raise NotLinked(f"has {here:,} names, of which {len(copy.names):,} are in the given folders")
    if kept.key not in on_disk:
        os.fsync(source.fd)  # the copy may have been on disk before the file that stands for it now
        on_disk.add(kept.key)
    sharing.hardlink(source, kept, target)
    for name in copy.names[1:]:
        with held(name) as further:
            if not os.path.samestat(os.fstat(further.fd), os.fstat(target.fd)):
                raise NotLinked(f"its name {shown(name.path)} leads to another file now")
            sharing.hardlink(source, kept, further)
