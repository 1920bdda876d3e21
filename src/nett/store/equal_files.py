"""Which files hold the same bytes: by size, then by a hash of samples, then by sha256 of everything."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from nett.core.progress import report
from nett.core.receipt import open_sha256
from nett.core.runner import Pool, thread_count
from nett.store.handle import Handle, NotLinked, held
from nett.store.tree import File

SAMPLE = 1 << 16
K = TypeVar("K", bound=Hashable)


def equal_files(files: Sequence[File], *, threads: int = 0) -> tuple[list[list[File]], list[tuple[File, str]]]:
    """(groups of two or more files with the same sha256, largest first; files that could not be read, and why).

    Each file of a group carries its sha256. Names of one file are no copies: a file stands in a group once.
    """
    failed: list[tuple[File, str]] = []
    pool = Pool(thread_count(threads))

    def by(what: str, function: Callable[[Handle, File], K], groups: Iterable[list[File]]) -> list[list[File]]:
        """The groups, split by what ``function`` says of each file."""
        asked = [f for g in groups for f in g]
        report.begin(what, len(asked) if function is sample else sum(f.stat.st_size for f in asked))
        split: dict[Hashable, list[File]] = defaultdict(list)
        for file, found in zip(asked, pool.ordered(lambda f: _read(f, function), asked), strict=True):
            report.step(1 if function is sample else file.stat.st_size)
            if isinstance(found, NotLinked):
                failed.append((file, str(found)))
            else:
                file.sha256 = found if isinstance(found, str) else ""
                split[file.stat.st_size, found].append(file)
        return [g for g in split.values() if len(g) > 1]

    try:
        sizes: dict[int, list[File]] = defaultdict(list)
        for file in files:
            sizes[file.stat.st_size].append(file)
        alike = by("sampling", sample, (g for g in sizes.values() if len(g) > 1))
        found = by("reading", whole, alike)
    finally:
        pool.close()
        report.end()
    return sorted(found, key=lambda g: (-g[0].stat.st_size * (len(g) - 1), g[0].path)), failed


def sample(handle: Handle, file: File) -> bytes:
    """A hash of the start, the middle and the end."""
    from xxhash import xxh3_128

    digest, size = xxh3_128(), file.stat.st_size
    for at in sorted({0, max(0, size // 2 - SAMPLE // 2), max(0, size - SAMPLE)}):
        digest.update(os.pread(handle.fd, SAMPLE, at))
    return digest.digest()


def whole(handle: Handle, file: File) -> str:
    return open_sha256(handle.fd, file.stat.st_size)


def _read(file: File, function: Callable[[Handle, File], K]) -> K | NotLinked:
    try:
        with held(file.names[0]) as handle:
            handle.check(file)
            try:
                found = function(handle, file)
            except OSError as error:
                return NotLinked(f"cannot be read: {error.strerror}")
            handle.check(file)
            return found
    except NotLinked as why:
        return why
