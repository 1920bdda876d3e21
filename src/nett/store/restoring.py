"""A model out of the store again: as files, or tensor by tensor without writing anything."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nett.core.codec import BLOCK
from nett.core.dtypes import Array
from nett.core.errors import ProofFailed, Refused, UsageError
from nett.core.progress import report
from nett.core.runner import Pool, thread_count
from nett.core.staging import check_target, staged, work_key
from nett.store.library import Library
from nett.store.records import StoredFile


def restore_model(
    root: Path, name: str, out: Path | None, *, overwrite: bool = False, dry_run: bool = False, threads: int = 0
) -> dict[str, Any]:
    """Write a model's files to ``out``, byte for byte as they were added, with their times and modes."""
    with Library.open(root) as library:
        model = library.model(name)
        if out is None:
            raise UsageError("say where the model goes", where=f"{root}/{name}", hint="--out DIR")
        if dry_run:
            return {"say": [f"would write {model.nbytes:,} bytes in {len(model.files)} file(s) to {out}"]}
        check_target(out, model.nbytes, overwrite=overwrite, inputs=[root / "nett.json"])
        key = work_key({"restore": name, "store": str(root.resolve()), "files": [f.sha256 for f in model.files]})
        pool = Pool(thread_count(threads))
        report.begin("restoring", model.nbytes)
        try:
            with library.leased(model), staged(out, key) as staging:
                for file in model.files:
                    _write(library, file, staging.path, pool)
                staging.commit()
        finally:
            report.end()
            pool.close()
    return {"say": [f"{out}: {name}, {model.nbytes:,} bytes, every file equal by sha256"], "out": str(out)}


def contents(library: Library, file: StoredFile, pool: Pool) -> Iterator[Array]:
    """The bytes of a stored file, in order, decoded on the pool's threads."""
    wanted = [
        (part.object, at, min(part.offset + part.nbytes, (at // BLOCK + 1) * BLOCK))
        for part in file.parts
        for at in _starts(part.offset, part.nbytes)
    ]

    def one(item: tuple[str, int, int]) -> Array:
        digest, start, stop = item
        index = start // BLOCK
        return library.objects.block(digest, index)[start - index * BLOCK : stop - index * BLOCK]

    return pool.ordered(one, wanted)


def _starts(offset: int, nbytes: int) -> Iterator[int]:
    """Where the blocks of an object begin that bytes ``offset:offset + nbytes`` touch, the first cut to them."""
    at = offset
    while at < offset + nbytes:
        yield at
        at = (at // BLOCK + 1) * BLOCK


def _write(library: Library, file: StoredFile, folder: Path, pool: Pool) -> None:
    target = folder / file.path
    if ".." in Path(file.path).parts or Path(file.path).is_absolute():
        raise ProofFailed(f"names the file {file.path!r}, which leaves the folder", where=library.root)
    target.parent.mkdir(parents=True, exist_ok=True)
    seen = hashlib.sha256()
    with target.open("wb", buffering=0) as stream:
        for data in contents(library, file, pool):
            seen.update(data.data)
            view = data.data
            while view:
                view = view[stream.write(view) :]
            report.step(data.nbytes)
        os.fsync(stream.fileno())
    if seen.hexdigest() != file.sha256:
        raise ProofFailed(
            f"{file.path} does not come back as it was added", where=library.root, hint="nett store check"
        )
    os.chmod(target, file.mode)
    os.utime(target, ns=(file.mtime_ns, file.mtime_ns))


def restore(
    root: Path, receipt: Mapping[str, Any], *, task: str | None, out: Path | None, **options: Any
) -> dict[str, Any]:
    """What ``nett restore STORE --task MODEL --out DIR`` does."""
    if task is None:
        with Library.open(root) as library:
            names = library.names()
        raise Refused(
            "holds several models; name one",
            where=root,
            hint=f"nett restore {root}/{names[0] if names else 'MODEL'} --out DIR",
        )
    options.pop("base", None)  # the store holds every base itself
    return restore_model(root, task, out, **options)


def verify(root: Path, receipt: Mapping[str, Any], *, rerun: bool = False) -> list[dict[str, Any]]:
    """Every model of the store; with ``rerun`` every block is decoded and every object hashed."""
    from nett.store.checking import check_store

    return check_store(root, full=rerun)[0]
