"""Stored row selectors: which of a parent's rows, as a roaring bitmap of their ordinals, and in which order, as a
stream of places; written and read a piece at a time.

A ``.roaring`` file is the portable serialisation of a bitmap, which any roaring library reads; an ``.order`` file is zlib
over little-endian unsigned integers of 32 bits; in both, a 64 at the end of the name means numbers of 64 bits. In order:
for each row of the child its place among the rows taken, parts one after the other.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nett.core.errors import Refused, missing_extra
from nett.lake.inside import inside
from nett.lake.rebuild import Rebuild, Stored
from nett.lake.workbench import Workbench

PIECE = 1 << 18  # ordinals at a time
WIDE = 1 << 32
_LEVEL = 6


def bitmaps() -> Any:
    """The library of bitmaps."""
    try:
        import pyroaring
    except ImportError as error:
        raise missing_extra("pyroaring", "lake", "a row selector") from error
    return pyroaring


def write_bitmap(bench: Workbench, sql: str, path: Path, rows: int) -> Stored:
    """A query's one column of ordinals below ``rows``, as a bitmap; ``path`` without its ending."""
    wide = rows > WIDE
    path = path.with_name(f"{path.name}.roaring{'64' if wide else ''}")
    found = bitmaps().BitMap64() if wide else bitmaps().BitMap()
    for batch in bench.batches(sql, PIECE):
        taken = batch.column(0).to_numpy(zero_copy_only=False)
        found.update(taken.astype(np.uint64 if wide else np.uint32))
    if not wide:
        found.run_optimize()
    return _put(path, found.serialize())


def write_order(bench: Workbench, sql: str, path: Path, *, wide: bool) -> Stored:
    """A query's one column of places, in its order; ``path`` without its ending."""
    path = path.with_name(f"{path.name}.order{'64' if wide else ''}")
    packer, digest, size = zlib.compressobj(_LEVEL), hashlib.sha256(), 0
    with path.open("wb") as file:

        def put(data: bytes) -> None:
            nonlocal size
            file.write(data)
            digest.update(data)
            size += len(data)

        for batch in bench.batches(sql, PIECE):
            places = batch.column(0).to_numpy(zero_copy_only=False)
            put(packer.compress(places.astype("<u8" if wide else "<u4").tobytes()))
        put(packer.flush())
        file.flush()
        os.fsync(file.fileno())
    return Stored(path=path.name, bytes=size, sha256=digest.hexdigest())


def _put(path: Path, data: bytes) -> Stored:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Stored(path=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def load_picks(bench: Workbench, rebuild: Rebuild, folder: Path, rows: dict[str, int]) -> str | None:
    """The stored files of a rebuild as a table (i, part, o): ordinal ``o`` of a part's parent is the child's row
    ``i``. None where nothing is stored. ``folder``: where the files lie; ``rows``: of each parent.

    Refused where a file is not what the plan pinned, or does not hold.
    """
    if not rebuild.stored and len(rebuild.parts) == 1:
        return None
    places = bench.named()
    bench.db.execute(f"CREATE TABLE {places} (part INTEGER, o BIGINT, place BIGINT)")
    at = 0
    for number, part in enumerate(rebuild.parts):
        if part.rows is None:
            count = rows[part.parent]
            bench.db.execute(f"INSERT INTO {places} SELECT {number}, range, {at} + range FROM range({count})")
            at += count
        else:
            at = _load_bitmap(bench, places, checked(folder, part.rows), number, at, _is_wide(part.rows))
    if rebuild.order is None:
        picks = bench.make(f"SELECT part, o, place AS i FROM {places}")
    else:
        order = bench.named()
        bench.db.execute(f"CREATE TABLE {order} (place BIGINT, i BIGINT)")
        _load_order(bench, order, checked(folder, rebuild.order), _is_wide(rebuild.order))
        picks = bench.make(f"SELECT part, o, i FROM {places} JOIN {order} USING (place)")
        bench.drop(order)
    bench.drop(places)
    return picks


def _load_bitmap(bench: Workbench, table: str, data: bytes, part: int, at: int, wide: bool) -> int:
    library = bitmaps()
    try:
        found = (library.BitMap64 if wide else library.BitMap).deserialize(data)
    except Exception as error:
        raise Refused(f"a row selector does not hold: its bitmap cannot be read ({error})") from error
    for start in range(0, len(found), PIECE):
        ordinals = np.asarray(found[start : start + PIECE].to_array()).astype(np.int64)
        _insert(bench, table, {
            "part": np.full(ordinals.size, part, np.int32), "o": ordinals,
            "place": np.arange(at + start, at + start + ordinals.size),
        })  # fmt: skip
    return at + len(found)


def _load_order(bench: Workbench, table: str, data: bytes, wide: bool) -> None:
    size, at = 8 if wide else 4, 0
    for piece in _inflated(data, PIECE * size):
        places = np.frombuffer(piece, "<u8" if wide else "<u4").astype(np.int64)
        _insert(bench, table, {"place": places, "i": np.arange(at, at + places.size)})
        at += places.size


def _inflated(data: bytes, most: int) -> Iterator[bytes]:
    unpacker = zlib.decompressobj()
    left = b""
    try:
        while not unpacker.eof:
            piece = left + unpacker.decompress(data, most)
            data = unpacker.unconsumed_tail
            if not piece and not data:
                break
            whole = len(piece) - len(piece) % 8 if not unpacker.eof else len(piece)
            left = piece[whole:]
            yield piece[:whole]
    except zlib.error as error:
        raise Refused(f"a row selector does not hold: {error}") from error


def _insert(bench: Workbench, table: str, columns: dict[str, Any]) -> None:
    import pyarrow as pa

    bench.db.register("piece", pa.table(columns))
    bench.db.execute(f"INSERT INTO {table} SELECT * FROM piece")
    bench.db.unregister("piece")


def _is_wide(stored: Stored) -> bool:
    return stored.path.endswith("64")


def checked(folder: Path, stored: Stored) -> bytes:
    """The bytes of a stored file. Refused where they are not those that were planned, or lie outside the folder."""
    path = inside(folder, stored.path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Refused(f"the row selector cannot be read: {error.strerror}", where=path) from error
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise Refused("the row selector is not the one that was planned (its sha256 differs)", where=path)
    return data
