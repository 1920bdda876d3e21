"""Traces: which experts each step of a model asked for, in memory and as a file.

A file of JSON lines: first ``{"experts": [E of each mixture], "chosen": k}``, then a line a step, which is a list with the
experts that each mixture was asked for. Or an array (.npy) of integers ``[steps, mixtures, k]``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.staging import put_file

ENDINGS = (".jsonl", ".npy")


@final
@dataclass(frozen=True)
class Steps:
    """``wanted``: for each mixture int64 [steps, W], ascending, -1 behind a row's experts; ``experts``: how many each has;
    ``chosen``: how many a token is given."""

    wanted: Sequence[Array]
    experts: Sequence[int]
    chosen: int

    @property
    def count(self) -> int:
        return len(self.wanted[0])


def padded(rows: Sequence[Sequence[int]]) -> Array:
    """Sets of experts as the rows of an array, ascending, with -1 behind them."""
    made = np.full((len(rows), max(1, *map(len, rows)) if rows else 1), -1, np.int64)
    for i, row in enumerate(rows):
        made[i, : len(row)] = sorted(row)
    return made


def write_steps(file: Path, steps: Steps) -> None:
    """As a file of JSON lines, whole or not at all."""
    lines = [json.dumps({"experts": list(steps.experts), "chosen": steps.chosen})]
    for t in range(steps.count):
        lines.append(json.dumps([[e for e in w[t].tolist() if e >= 0] for w in steps.wanted], separators=(",", ":")))
    put_file(file, ("\n".join(lines) + "\n").encode())


def read_steps(file: Path) -> Steps:
    """Refused where a line is no step, naming the line."""
    if not file.is_file():
        raise Refused("there is no such trace", where=file)
    return _of_array(file) if file.suffix == ".npy" else _of_lines(file)


def _of_array(file: Path) -> Steps:
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise Refused(f"is no array of NumPy: {error}", where=file) from error
    if found.ndim != 3 or found.dtype.kind not in "iu" or not found.size or int(found.min()) < 0:
        hint = "Integers [steps, mixtures, k], each the number of an expert."
        raise Refused(f"holds {found.dtype} {list(found.shape)}, which is no trace", where=file, hint=hint)
    layers = [padded([sorted(set(row)) for row in found[:, i].tolist()]) for i in range(found.shape[1])]
    return Steps(layers, [int(found[:, i].max()) + 1 for i in range(found.shape[1])], int(found.shape[2]))


def _of_lines(file: Path) -> Steps:
    rows: list[list[list[int]]] = []
    experts: list[int] = []
    chosen = 0
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                said: Any = json.loads(line)
                if number == 1:
                    experts, chosen = [int(e) for e in said["experts"]], int(said["chosen"])
                    rows = [[] for _ in experts]
                    good = bool(experts) and min(experts) > 0 and chosen > 0
                else:
                    good = isinstance(said, list) and len(said) == len(experts) and all(
                        type(e) is int and 0 <= e < count for row, count in zip(said, experts, strict=True) for e in row
                    )  # fmt: skip
            except (ValueError, KeyError, TypeError) as error:
                raise Refused(
                    f"is no line of a trace: {type(error).__name__} {error}", where=f"{file}:{number}"
                ) from error
            if not good:
                hint = 'First {"experts": [8, 8], "chosen": 2}, then a line a step: [[0, 3], [1, 2]].'
                raise Refused(f"is no step of mixtures of {experts} experts", where=f"{file}:{number}", hint=hint)
            if number > 1:
                for mine, row in zip(rows, said, strict=True):
                    mine.append(sorted(set(row)))
    if not rows or not rows[0]:
        raise Refused("holds no step", where=file)
    return Steps([padded(r) for r in rows], experts, chosen)
