"""Reading every element of many tensors once, whoever wants to look at them.

Several questions (:class:`Pass`) about the same tensors share one read. What lies side by side in a file is read
with one call of several megabytes, however small the tensors are. Memory is bounded by a job for each thread.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from nett.core.checkpoint.base import Checkpoint, TensorInfo
from nett.core.checkpoint.files import FileReader
from nett.core.dtypes import Array
from nett.core.runner import Pool

UNIT = 1 << 18  # elements looked at together; fixed, so that what is computed from a unit is comparable
JOB = 8 << 20  # bytes that one thread reads before it looks
_WIDEST = 8  # tensors that share a read; more are read again


@final
@dataclass(frozen=True)
class Source:
    """A tensor of an open checkpoint."""

    checkpoint: Checkpoint
    info: TensorInfo

    @property
    def key(self) -> tuple[int, str]:
        return id(self.checkpoint), self.info.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    def values(self, start: int, stop: int) -> Array:
        """Elements ``start:stop`` of the flattened tensor, decoded."""
        return self.checkpoint.values(self.info.name, start, stop)


class Fold(ABC):
    """A question about all elements of one tensor, or of several of equal size side by side."""

    @abstractmethod
    def look(self, pieces: Sequence[Array]) -> Any:
        """What one unit says: raw elements, one array a tensor, not to be kept. Called from any thread."""

    @abstractmethod
    def join(self, before: Any, unit: Any) -> Any:
        """``before`` (None at first) with the next unit's part added; called in the order of the units."""

    def settle(self, seen: Any) -> Any:
        """The answer; ``seen`` is None for tensors without elements."""
        return seen

    def enough(self, seen: Any) -> bool:
        """Whether the rest cannot change the answer any more."""
        return False


@dataclass(eq=False)
class Pass:
    """A fold over tensors. ``answer``, ``seconds`` and ``bytes_read`` are filled by :func:`sweep`."""

    sources: tuple[Source, ...]
    fold: Fold
    answer: Any = None
    seconds: float = 0.0
    bytes_read: int = 0
    done: bool = False
    _seen: Any = None
    _places: tuple[int, ...] = ()


@dataclass(eq=False)
class _Cluster:
    """Tensors of equal size that are read together, and the passes that look at them."""

    sources: list[Source] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)

    @property
    def units(self) -> int:
        return -(-self.sources[0].info.size // UNIT)

    @property
    def first_byte(self) -> tuple[str, int]:
        info = self.sources[0].info
        return str(info.file), info.offset


class _Slice(NamedTuple):
    cluster: _Cluster
    first: int  # unit
    last: int

    def bounds(self) -> tuple[int, int]:
        return self.first * UNIT, min(self.cluster.sources[0].info.size, self.last * UNIT)


def sweep(passes: Sequence[Pass], pool: Pool, on_bytes: Callable[[int], None] = lambda _: None) -> None:
    """Answer all passes. Raises what reading raises. Results do not depend on the number of threads."""
    reading = _Reading()
    try:
        jobs = _jobs(_clusters(passes))
        for parts, got in pool.ordered(reading.work, jobs):
            for one, unit in parts:
                if not one.done:
                    one._seen = one.fold.join(one._seen, unit)
                    one.done = one.fold.enough(one._seen)
            on_bytes(got)
        for one in passes:
            one.answer, one._seen, one.done = one.fold.settle(one._seen), None, True
    finally:
        reading.close()


def _clusters(passes: Sequence[Pass]) -> list[_Cluster]:
    found: dict[int, _Cluster] = {}
    home: dict[tuple[int, str], _Cluster] = {}
    for one in sorted(passes, key=lambda p: -len(p.sources)):
        near = list(dict.fromkeys(home[s.key] for s in one.sources if s.key in home))
        union = {s.key: s for c in near for s in c.sources} | {s.key: s for s in one.sources}
        if len(one.sources) == 1 and near:
            target = near[0]
        elif near and len(union) <= _WIDEST:
            target = near[0]
            for other in near[1:]:
                target.passes += other.passes
                del found[id(other)]
        else:
            target = _Cluster()
            union = {s.key: s for s in one.sources}
            found[id(target)] = target
        if len(one.sources) > 1 or not near:
            target.sources = list(union.values())
            home |= dict.fromkeys(union, target)
        target.passes.append(one)
    for cluster in found.values():
        place = {s.key: i for i, s in enumerate(cluster.sources)}
        for one in cluster.passes:
            one._places = tuple(place[s.key] for s in one.sources)
    return sorted(found.values(), key=lambda c: c.first_byte)


def _jobs(clusters: Sequence[_Cluster]) -> Iterator[list[_Slice]]:
    """Slices of about ``JOB`` bytes together, in the order of the files."""
    job: list[_Slice] = []
    left = JOB
    for cluster in clusters:
        unit_bytes = UNIT * sum(s.info.dtype.bytes for s in cluster.sources)
        size, units, first = cluster.sources[0].info.size, cluster.units, 0
        while first < units:
            rest = (size - first * UNIT) * unit_bytes // UNIT
            whole = rest <= left
            take = units - first if whole else max(1, left // unit_bytes)
            if job and not whole and left < unit_bytes:
                yield job
                job, left = [], JOB
                continue
            job.append(_Slice(cluster, first, first + take))
            left -= rest if whole else take * unit_bytes
            first += take
            if left <= 0:
                yield job
                job, left = [], JOB
    if job:
        yield job


class _Wanted(NamedTuple):
    file: Path
    offset: int
    nbytes: int
    piece: tuple[int, int]  # slice of the job, tensor of its cluster


@final
class _Reading:
    """The open files, a buffer for each thread, and what is done with a job."""

    def __init__(self) -> None:
        self._readers: dict[Path, FileReader] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    def work(self, job: list[_Slice]) -> tuple[list[tuple[Pass, Any]], int]:
        """Read a job and let every pass look at its units. Returns what they saw, and the bytes of the job."""
        full = sum((b - a) * s.info.dtype.bytes for c in job for a, b in [c.bounds()] for s in c.cluster.sources)
        live = [s for s in job if not all(p.done for p in s.cluster.passes)]
        begun = time.perf_counter()
        pieces = self._read(live)
        lookers = [(place, one) for place, s in enumerate(live) for one in s.cluster.passes if not one.done]
        share = (time.perf_counter() - begun) / max(1, len(lookers))
        parts: list[tuple[Pass, Any]] = []
        spent: dict[Pass, float] = defaultdict(float)
        for place, one in lookers:
            start, stop = live[place].bounds()
            mine = [pieces[place, i] for i in one._places]
            begun = time.perf_counter()
            with np.errstate(all="ignore"):  # NaN and infinity are for the fold to judge, not for NumPy to warn of
                for at in range(0, stop - start, UNIT):
                    parts.append((one, one.fold.look([p[at : at + UNIT] for p in mine])))
            spent[one] += share + time.perf_counter() - begun
        with self._lock:
            for place, one in lookers:
                one.bytes_read += sum(pieces[place, i].nbytes for i in one._places)
            for one, seconds in spent.items():
                one.seconds += seconds
        return parts, full

    def _read(self, slices: Sequence[_Slice]) -> dict[tuple[int, int], Array]:
        plain, pieces = [], {}
        for place, part in enumerate(slices):
            start, stop = part.bounds()
            for i, source in enumerate(part.cluster.sources):
                info = source.info
                if info.file is not None and info.offset >= 0:
                    size = info.dtype.bytes
                    plain.append(_Wanted(info.file, info.offset + start * size, (stop - start) * size, (place, i)))
                else:
                    pieces[place, i] = source.checkpoint.read(info.name, start, stop)
        plain.sort(key=lambda w: (str(w.file), w.offset))
        buffer, at = self._buffer(sum(w.nbytes for w in plain) + 128 * len(plain)), 0
        for run in _runs(plain):
            at += -at % 64 + run[0].offset % 64  # in memory as in the file, so that elements are aligned in both
            length = run[-1].offset + run[-1].nbytes - run[0].offset
            self._reader(run[0].file).read_into(buffer[at : at + length], run[0].offset)
            for wanted in run:
                begin = at + wanted.offset - run[0].offset
                place, i = wanted.piece
                raw = np.dtype(slices[place].cluster.sources[i].info.dtype.raw)
                piece = buffer[begin : begin + wanted.nbytes]
                pieces[place, i] = (piece if wanted.offset % raw.itemsize == 0 else piece.copy()).view(raw)
            at += length
        return pieces

    def _buffer(self, nbytes: int) -> Array:
        """Bytes of this thread, from a multiple of 64 on; used again for each job."""
        held: Array | None = getattr(self._local, "buffer", None)
        if held is None or held.size < nbytes:
            memory = np.empty(max(nbytes, JOB + JOB // 4) + 64, np.uint8)
            held = memory[-memory.ctypes.data % 64 :]
            self._local.buffer = held
        return held

    def _reader(self, path: Path) -> FileReader:
        with self._lock:
            return self._readers.setdefault(path, FileReader(path))


def _runs(wanted: Sequence[_Wanted]) -> Iterator[list[_Wanted]]:
    """What follows one another in a file without a gap, to be read with one call."""
    run: list[_Wanted] = []
    for one in wanted:
        if run and (one.file != run[-1].file or one.offset != run[-1].offset + run[-1].nbytes):
            yield run
            run = []
        run.append(one)
    if run:
        yield run
