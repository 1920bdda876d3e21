"""Checkpoints that are arrays in memory, and the room's stream run over them: no file, no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint import Checkpoint, TensorInfo
from nett.core.dtypes import DTYPES
from nett.core.registry import Card
from nett.core.runner import Pool
from nett.merge.job import Job, labels_of, plan_tensors
from nett.merge.stream import Stream
from support.tensors import Array, to_bits


@final
class ArraysCheckpoint(Checkpoint):
    """Named arrays, stored in one element type."""

    format = "arrays"
    files = ()

    def __init__(self, tensors: Mapping[str, Array], dtype: str = "F32", name: str = "arrays") -> None:
        self.path = Path(name)
        kind = DTYPES[dtype]
        self._raw = {n: np.frombuffer(to_bits(a, dtype), kind.raw) for n, a in tensors.items()}
        self.tensors = {n: TensorInfo(n, kind, a.shape, dtype, a.size * kind.bytes) for n, a in tensors.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        return self._raw[name][start:stop].copy()

    def close(self) -> None:
        pass


def merged_in_memory(
    card: Card,
    base: Checkpoint | None,
    tuned: Sequence[Checkpoint],
    parameters: Mapping[str, Any],
    *,
    threads: int = 1,
) -> dict[str, Any]:
    """Tensor name -> the kernel's result, put together from its chunks."""
    tasks, _ = plan_tensors(card, base, tuned, lambda _: dict(parameters), None)
    job = Job(card, base, tuple(tuned), labels_of(tuned), parameters, tasks)
    pool = Pool(threads)
    try:
        stream = Stream(job, pool, lambda _: None)
        known = stream.survey_model(lambda: None)
        parts: dict[str, list[Any]] = {}
        for task, _, result in stream.results(known, 0, lambda task, index, result, operands: result):
            parts.setdefault(task.name, []).append(result)
    finally:
        pool.close()
    return {name: joined(found) for name, found in parts.items()}


def joined(parts: Sequence[Any]) -> Any:
    """Chunks of arrays, of lists of arrays or of mappings of them, end to end."""
    if isinstance(parts[0], Mapping):
        return {key: joined([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], list):
        return [joined([part[i] for part in parts]) for i in range(len(parts[0]))]
    return np.concatenate([np.asarray(part).ravel() for part in parts])
