"""The same evidence from every byte: hashes of whole tensors, entropies of their planes, differences to the base."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np

from nett.core.codec import BLOCK
from nett.core.codec.planes import Form
from nett.core.dtypes import Array
from nett.core.errors import NettError
from nett.core.progress import report
from nett.core.runner import Pool
from nett.scan.disk.entropy import count, forms, share, widths
from nett.scan.disk.evidence import Evidence, unpermuted
from nett.scan.disk.grids import dtype_of, of_tensor
from nett.scan.disk.models import Unit


@final
class Ids:
    """Numbers for hashes of 128 bits: equal numbers, equal hashes."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}

    def of(self, digest: bytes) -> int:
        return self._known.setdefault(digest, len(self._known))


def read_all(known: Sequence[Evidence], pool: Pool) -> list[Evidence]:
    """Every file from start to end; those that cannot be read, or change meanwhile, are left out with a ``problem``."""
    ids = Ids()
    found = []
    report.begin("reading", sum(e.item.size for e in known))
    for e, made in zip(known, pool.ordered(_read, known), strict=True):
        report.step(e.item.size)
        if made is None:
            continue
        whole, digests, own, grid, narrow, other = made
        found.append(
            replace(
                e,
                whole=(e.item.size, whole),
                tensors=np.arange(len(digests)),
                weights=e.layout.nbytes.astype(np.float64),
                hashes=np.array([ids.of(d) for d in digests], np.uint64),
                telling=np.ones(len(digests), bool),
                own=own,
                error=np.zeros(len(own)),
                grid=grid,
                narrow=narrow,
                other={row: ids.of(d) for row, d in other.items()},
                sampled=len(digests),
            )
        )
    report.end()
    return found


def read_deltas(models: Sequence[Unit], pool: Pool) -> None:
    """The entropies of the differences of each model that has a base."""
    todo = [(u, n) for u in models if u.base is not None for n in range(len(u.files))]
    report.begin("comparing", sum(u.files[n].item.size for u, n in todo))
    for (unit, number), found in zip(todo, pool.ordered(lambda t: _deltas(*t), todo), strict=True):
        report.step(unit.files[number].item.size)
        if found is not None:
            unit.exact[number], unit.error = found, 0.0
    report.end()


def _deltas(unit: Unit, number: int) -> Array | None:
    assert unit.base is not None
    e = unit.files[number]
    found = e.own.copy()
    pairs = [(row, there) for row in range(len(found)) if (there := unit.there(number, row)) is not None]
    fds: dict[str, int] = {}
    try:
        for row, (other, place) in pairs:
            if other.hashes[place] == e.hashes[row]:
                found[row] = 0.0
                continue
            for item in (e.item, other.item):
                if item.path not in fds:
                    fds[item.path] = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC)
            size, width = int(e.layout.nbytes[row]), int(e.layout.widths[row])
            tally = _Tally(width, size, to_base=True)
            ground = _blocks(fds[other.item.path], other.item.start + int(other.layout.offsets[place]), size)
            for raw in _blocks(fds[e.item.path], e.item.start + int(e.layout.offsets[row]), size):
                tally.add(raw, next(ground))
            found[row] = tally.share
    except OSError as error:
        e.item.problem = f"cannot be read: {error.strerror}"
        return None
    finally:
        for fd in fds.values():
            os.close(fd)
    return found


@final
class _Tally:
    """Counts of the bytes of all planes, in each way of coding."""

    def __init__(self, width: int, nbytes: int, *, to_base: bool) -> None:
        ways: list[tuple[int, Form]] = [f for w in widths(width, nbytes) for f in forms(w, to_base)]
        self._counts = {way: np.zeros((way[0], 1, 256), np.int64) for way in ways}

    def add(self, raw: Array, base: Array | None = None) -> None:
        for (width, form), counts in self._counts.items():
            count(raw, 1, width, form, base, counts)

    @property
    def share(self) -> float:
        return min(share(c) for c in self._counts.values())


def _read(e: Evidence) -> tuple[bytes, list[bytes], Array, Array, Array, dict[int, bytes]] | None:
    """(hash of the file, hashes of tensors, coded shares, what grids take off, F32 that are bfloat16, hashes of rotary tensors)."""
    try:
        fd = os.open(e.item.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            before = os.fstat(fd)
            found = _of_file(e, fd)
            if e.item.is_state(before) and e.item.is_state(os.fstat(fd)):
                return found
            e.item.problem = "changed while it was being read"
        finally:
            os.close(fd)
    except OSError as error:
        e.item.problem = f"cannot be read: {error.strerror}"
    except NettError as error:
        e.item.problem = error.what
    return None


def _of_file(e: Evidence, fd: int) -> tuple[bytes, list[bytes], Array, Array, Array, dict[int, bytes]]:
    from xxhash import xxh3_128

    layout, item = e.layout, e.item
    whole, at = xxh3_128(), 0
    digests: list[bytes] = []
    own, grid = np.ones(len(layout.names)), np.zeros(len(layout.names))
    narrow = np.zeros(len(layout.names), bool)
    for row, (offset, size) in enumerate(zip(layout.offsets.tolist(), layout.nbytes.tolist(), strict=True)):
        begin = item.start + offset if layout.format != "opaque" else 0
        for raw in _blocks(fd, at, begin - at):
            whole.update(raw.data)
        digest, seen = xxh3_128(str(size).encode()), 0
        tally = _Tally(int(layout.widths[row]), size, to_base=False) if layout.format != "opaque" else None
        for raw in _blocks(fd, begin, size):
            digest.update(raw.data)
            if tally is not None:
                tally.add(raw)
                if layout.floats[row]:
                    seen |= int(np.bitwise_or.reduce(raw.view(np.uint32))) & 0xFFFF
        digests.append(digest.digest())
        whole.update(digests[-1])
        own[row] = tally.share if tally is not None else 1.0
        if (dtype := dtype_of(layout, row)) is not None:
            packed = of_tensor(functools.partial(_blocks, fd, begin, size), size, dtype)
            own[row], grid[row] = min(own[row], packed), 1.0 - packed
        narrow[row] = bool(layout.floats[row]) and not seen
        at = begin + size
    for raw in _blocks(fd, at, item.size - at):
        whole.update(raw.data)
    return whole.digest(), digests, own, grid, narrow, _rotated(e, fd)


def _rotated(e: Evidence, fd: int) -> dict[int, bytes]:
    from xxhash import xxh3_128

    found = {}
    for row, (heads, width) in e.layout.rotary.items():
        size = int(e.layout.nbytes[row])
        within = size // width // heads * width  # bytes of a head
        digest = xxh3_128(str(size).encode())
        for at in range(0, size, within):
            digest.update(unpermuted(fd, e.item.start + int(e.layout.offsets[row]), size, (heads, width), at, within))
        found[row] = digest.digest()
    return found


def _blocks(fd: int, begin: int, size: int) -> Iterator[Array]:
    """Bytes of a file, ``BLOCK`` at a time, in memory that the next block overwrites."""
    buffer = np.empty(min(BLOCK, max(size, 0)), np.uint8)
    done = 0
    while done < size:
        view: Any = buffer[: min(BLOCK, size - done)]
        got = 0
        while got < len(view):
            more = os.preadv(fd, [view[got:]], begin + done + got)
            if not more:
                raise NettError("became shorter while it was being read")
            got += more
        yield view
        done += len(view)
