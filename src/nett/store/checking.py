"""Is everything in the store what it was when it was added, and which models are hit by what is not?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import NettError
from nett.core.progress import report
from nett.core.runner import Pool, thread_count
from nett.store.library import Library
from nett.store.objects import object_path
from nett.store.records import Model

Check = dict[str, Any]


def check_store(root: Path, *, full: bool, threads: int = 0) -> tuple[list[Check], dict[str, list[str]]]:
    """One check a model, and the damaged objects with the models that need them.

    Quick: every object is there, its header holds and its size is right. Full: every block of every object is
    decoded, and its bytes are those that its name says.
    """
    with Library.open(root) as library:
        models: list[Model] = []
        checks: list[Check] = []
        for name in library.names():
            try:
                models.append(library.model(name))
            except NettError as error:
                checks.append({"name": f"model {name}", "ok": False, "detail": error.what})
        needs = {m.name: with_bases(library, m.objects) for m in models}
        every = sorted(set().union(*needs.values())) if needs else []
        wrong = _damaged(library, every, full, threads)
    hit: dict[str, list[str]] = {}
    for model in models:
        bad = sorted(needs[model.name] & wrong.keys())
        for digest in bad:
            hit.setdefault(digest, []).append(model.name)
        detail = f"{len(needs[model.name])} objects" if not bad else f"object {bad[0]}: {wrong[bad[0]]}"
        checks.append({"name": f"model {model.name}", "ok": not bad, "detail": detail})
    return checks, hit


def with_bases(library: Library, digests: set[str]) -> set[str]:
    """Objects and everything that they are differences to."""
    found, todo = set(digests), list(digests)
    while todo:
        try:
            base = library.objects.opened(todo.pop()).base
        except NettError:
            continue
        if base is not None and base not in found:
            found.add(base)
            todo.append(base)
    return found


def _damaged(library: Library, digests: list[str], full: bool, threads: int) -> dict[str, str]:
    pool = Pool(thread_count(threads))
    report.begin("checking", sum(_size(library, d) for d in digests))

    def one(digest: str) -> str:
        try:
            stored = library.objects.opened(digest)
            if not _falls(library, digest):
                return "rests on more differences than its header says"
            if stored.end != os.path.getsize(stored.path):
                return "its size is not what its header says"
            if full:
                seen = hashlib.sha256()
                for data in blocks_of(library, digest):
                    seen.update(data.data)
                if seen.hexdigest() != digest:
                    return "its bytes are not those that its name says"
        except NettError as error:
            return error.what
        except OSError as error:
            return str(error.strerror)
        return ""

    try:
        found = {}
        for digest, what in zip(digests, pool.ordered(one, digests), strict=True):
            report.step(_size(library, digest))
            if what:
                found[digest] = what
        return found
    finally:
        report.end()
        pool.close()


def intact(library: Library, digest: str) -> bool:
    """Whether an object is there, gives the bytes that its name says, all of which are read, and rests on no more
    than its header says: what it rests on may have been lost, and written anew as a difference to something else."""
    seen = hashlib.sha256()
    try:
        if not _falls(library, digest):
            return False
        for data in blocks_of(library, digest):
            seen.update(data.data)
    except NettError:
        return False
    return seen.hexdigest() == digest


def _falls(library: Library, digest: str) -> bool:
    """Whether the depths that headers tell fall along an object's bases."""
    return all(above.depth > below.depth for above, below in pairwise(library.objects.chain(digest)))


def _size(library: Library, digest: str) -> int:
    try:
        return object_path(library.root, digest).stat().st_size
    except OSError:
        return 0


def blocks_of(library: Library, digest: str) -> Iterator[Array]:
    """All bytes of an object, block by block."""
    for index in range(len(library.objects.opened(digest))):
        yield library.objects.block(digest, index)
    if not len(library.objects.opened(digest)):
        yield np.empty(0, np.uint8)
