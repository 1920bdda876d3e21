"""Every object of a store by its header: what rests on what, and what takes how many bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

from nett.core.errors import NettError, ProofFailed
from nett.store.library import Library
from nett.store.objects import StoredObject


@final
@dataclass(frozen=True)
class Held:
    """``depth``: at least as many as the differences on the way to an object that rests on nothing; always more than
    that of the base, so nothing can come to rest on itself."""

    base: str | None
    depth: int
    stored: int  # bytes of the file


def holdings(library: Library, needed: Iterable[str]) -> dict[str, Held]:
    """All objects. ProofFailed where one that is needed cannot be read, so that what it rests on is not known."""
    needed = set(needed)
    found: dict[str, Held] = {}
    for path in sorted((library.root / "objects").glob("??/*")):
        stored = path.stat().st_size
        try:
            one = StoredObject(library.root, path.name)
            found[path.name] = Held(one.base, one.depth, stored)
        except NettError as error:
            if path.name in needed:
                raise ProofFailed(
                    f"cannot be read, so it is not known what it rests on, and nothing is collected: {error.what}",
                    where=path,
                    hint=f"nett store check {library.root} --repair; or remove the models that need it.",
                ) from error
            found[path.name] = Held(None, 0, stored)
    return found


def closure(held: Mapping[str, Held], digests: Iterable[str]) -> set[str]:
    """Objects that are there, and everything that they rest on."""
    found: set[str] = set()
    todo = [d for d in digests if d in held]
    while todo:
        one = todo.pop()
        if one in found:
            continue
        found.add(one)
        base = held[one].base
        if base is not None and base in held:
            todo.append(base)
    return found
