"""Checking a store, and mending it where the bytes lie elsewhere too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from nett.core.errors import ProofFailed, Refused
from nett.core.registry import Between, method


@method(title="Check a store", kind="measure", grain="stream", guarantee="exact", extra="store", command=True)
def check(
    assets: Sequence[str], *, quick: bool = False, repair: bool = False, threads: Annotated[int, Between(0, 64)] = 0
) -> dict[str, Any]:
    """Read every object of a store and compare it with the hash that is its name; name the models that are hit.

    Args:
        quick: only that every object is there, whole by its header; its bytes are not read.
        repair: write damaged objects anew from the files that they were added from, where those still hold the bytes.
        threads: how many threads work; 0 for all that this process may use.
    When to use: now and then, as any archive; before the originals are deleted.
    When not: to get a model back; nett restore checks what it reads by itself.
    Guarantee: exact. A single flipped bit is found and named.
    Cost: reads and decodes the whole store once.
    Source: no paper; sha256 of the bytes, crc32 of each block.
    """
    from nett.store.checking import check_store
    from nett.store.library import only_store

    root = only_store(assets, "check")
    checks, hit = check_store(root, full=not quick, threads=threads)
    lines = []
    if hit and repair:
        lines += _repaired(root, sorted(hit))
        checks, hit = check_store(root, full=not quick, threads=threads)
    lines += [f"{'ok    ' if c['ok'] else 'DAMAGED'} {c['name']}: {c['detail']}" for c in checks]
    if hit or not all(c["ok"] for c in checks):
        names = sorted({n for models in hit.values() for n in models})
        first = next(c["detail"] for c in checks if not c["ok"])
        raise ProofFailed(
            f"{len(hit)} damaged object(s), in the models {', '.join(names)}: {', '.join(sorted(hit)[:3])} ({first})"
            if hit
            else "; ".join(c["detail"] for c in checks if not c["ok"]),
            where=root,
            hint=f"nett store check {root} --repair writes them anew from the files they were added from, if those are there.",
        )
    return {"say": [*lines, f"{root}: {len(checks)} model(s), all whole"], "checks": checks}


def _repaired(root: Path, damaged: Sequence[str]) -> list[str]:
    """Write damaged objects anew, coded by themselves, from the original files; returns what was done."""
    from nett.core.errors import NettError
    from nett.store.coding import own_mode
    from nett.store.draft import read_file
    from nett.store.library import Library
    from nett.store.objects import write_object

    lines = []
    with Library.open(root) as library, library.writing():
        for model in library.models():
            for file in model.files:
                wanted = {p.object for p in file.parts} & set(damaged)
                path = Path(model.source) if model.single else Path(model.source) / file.path
                if not wanted or not path.is_file():
                    continue
                try:
                    _, pieces = read_file(path, file.path)
                except NettError:
                    continue
                for digest in wanted & pieces.keys():
                    piece = pieces[digest]
                    _keep_aside(root, digest)
                    # By itself: what are differences to it find the same bytes. It takes the damaged one's place whole.
                    write_object(root, digest, piece.nbytes, own_mode(piece)[0], piece.read, None, None)
                    damaged = [d for d in damaged if d != digest]
                    lines.append(f"written anew from {path}: object {digest}")
    return lines


def _keep_aside(root: Path, digest: str) -> None:
    """A second name in the quarantine for a damaged object, which keeps its own until a whole one takes it."""
    import os

    from nett.store.objects import object_path

    aside = root / "quarantine" / digest
    aside.parent.mkdir(exist_ok=True)
    aside.unlink(missing_ok=True)
    if object_path(root, digest).is_dir():
        raise Refused("is a folder, and stands where an object should be", where=object_path(root, digest))
    if object_path(root, digest).exists():
        os.link(object_path(root, digest), aside)
