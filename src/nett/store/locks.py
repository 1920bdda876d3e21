"""One writer at a time, and readers whom garbage collection leaves what they read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from nett.core.errors import NettError, Refused


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """The one writer; Refused where there is another. The kernel lets go of the lock when the process dies."""
    try:
        fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise Refused(f"cannot be written: {error.strerror}", where=root) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused("another nett is writing to this store right now", where=root) from error
        except OSError as error:  # without the lock, nobody would keep a second writer out
            raise Refused(
                f"cannot be locked: {error.strerror}",
                where=root,
                hint="Keep the store where flock works: a local file system, or NFS with its lock service.",
            ) from error
        try:
            yield
        except OSError as error:
            raise NettError(
                f"{error.strerror or error}",
                where=error.filename or root,
                hint="What was in the store is whole; the same command again ends the work.",
            ) from error
    finally:
        os.close(fd)


@contextlib.contextmanager
def leased(root: Path, objects: Iterable[str], look: Callable[[], object]) -> Iterator[None]:
    """While this lasts, garbage collection leaves these objects alone. ``look`` is called once it does, and raises if it
    is too late."""
    lease = root / "leases" / uuid.uuid4().hex
    hidden = lease.with_name(f".{lease.name}")  # until it is locked and whole; collection leaves it alone so long
    try:
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError:  # a store that this user may only read: whoever collects there does not see him
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    except OSError:  # no locks here, so nobody collects here either
        hidden.unlink(missing_ok=True)
        os.close(fd)
        yield
        return
    try:
        os.write(fd, "\n".join(sorted(objects)).encode())
        os.rename(hidden, lease)
        look()  # what is there now was there when the lease began
        yield
    finally:
        hidden.unlink(missing_ok=True)
        lease.unlink(missing_ok=True)
        os.close(fd)
