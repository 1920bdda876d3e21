"""A merge as what it changes of its base, tensor by tensor: the differences of matrices, the new values of the rest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint import Checkpoint
from nett.core.dtypes import Array, decode, encode
from nett.core.errors import NettError, Refused
from nett.core.finite import count_non_finite
from nett.core.progress import report
from nett.core.runner import Pool
from nett.core.sums import dot
from nett.merge.job import Job, TensorTask
from nett.merge.lora_layout import Place
from nett.merge.stream import Stream

_IN_MEMORY = 64 << 20  # elements of a difference; a larger one lies in a file that is mapped
_UNIT = 2.0**-24  # how far a float32 result may lie from the real one, relative to it


@final
@dataclass(frozen=True)
class Change:
    """What the merge makes of one tensor. ``delta``: its difference to the base in float32, in the tensor's shape, for
    matrices; ``raw``: its new elements, in the base's type, for tensors that an adapter holds whole.

    ``rounding``: the squared norm that float32 arithmetic alone explains; ``delta`` below it is no change.
    """

    place: Place
    delta: Array | None
    raw: Array | None
    square: float  # of the difference
    size: float  # squared norm of the base's tensor
    rounding: float

    @property
    def changed(self) -> bool:
        return self.square > self.rounding


def changes(job: Job, ground: Checkpoint, placed: Mapping[str, Place], threads: int, scratch: Path) -> Iterator[Change]:
    """All tensors' changes in order; one tensor is in memory at a time, beside some chunks."""
    pool = Pool(threads)
    stream = Stream(job, pool, report.step)

    def finish(task: TensorTask, index: int, result: Any, _: list[Any]) -> tuple[Array, Array, Array]:
        start, stop = task.bounds(index)
        before = ground.values(task.name, start, stop)
        if task.copied or not task.size:
            if task.size and not np.array_equal(result, ground.read(task.name, start, stop)):
                raise Refused(f"tensor {task.name!r} differs from the base's and holds no floats", where=ground.path)
            return before, before, before[:0]
        after = np.asarray(result).ravel()
        if count_non_finite(after):
            raise NettError(f"tensor {task.name!r} of the result would hold NaN or infinity", where=job.card.key)
        info = ground.tensors[task.name]
        raw = encode(after, info.dtype) if placed[task.name].has_no_factors else before[:0]
        if raw.size:
            after = decode(raw, info.dtype)
        return before, (after.astype(np.float64) - before).astype(np.float32), raw

    try:
        report.begin("reading", sum(c.nbytes for c in job.checkpoints))
        tensors = stream.survey_model(lambda: None)
        report.begin("factoring", sum(t.size for t in job.tasks))
        delta, raw, size, square = np.empty(0, np.float32), np.empty(0), 0.0, 0.0
        for task, index, (before, difference, encoded) in stream.results(tensors, 0, finish):
            start, stop = task.bounds(index)
            report.step(stop - start)
            if task.copied or not task.size:
                continue
            place, kind = placed[task.name], np.dtype(ground.tensors[task.name].dtype.raw)
            if index == 0:
                whole = place.has_no_factors
                delta = np.empty(0, np.float32) if whole else _room(task.size, np.dtype(np.float32), scratch)
                raw, size, square = _room(task.size, kind, scratch) if whole else np.empty(0), 0.0, 0.0
            if place.has_no_factors:
                raw[start:stop] = encoded
            else:
                delta[start:stop] = difference
            size += dot(before, before)
            square += dot(difference, difference)
            if index == task.chunks - 1:
                rounding = (_UNIT * (len(job.tuned) + 2)) ** 2 * size
                yield Change(
                    place,
                    None if place.has_no_factors else delta.reshape(task.shape),
                    raw if place.has_no_factors else None,
                    square,
                    size,
                    0.0 if place.has_no_factors else rounding,
                )
    finally:
        report.end()
        pool.close()


def _room(size: int, kind: np.dtype[Any], scratch: Path) -> Array:
    """An array of its own, or a mapped file without a name where it is large."""
    if size <= _IN_MEMORY:
        return np.empty(size, kind)
    with tempfile.TemporaryFile(dir=scratch) as file:
        return np.memmap(file, kind, "w+", shape=(size,))
