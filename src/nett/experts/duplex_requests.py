"""Requests: when they come, how long their prompts and answers are."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.errors import Refused, UsageError
from nett.experts.duplex_settings import Lengths, Requests

COLUMNS = ("arrival", "input", "output")
Array = Any


@final
@dataclass(frozen=True)
class Trace:
    """Of each request: seconds of its arrival, ascending (-inf where it waits from the start: closed), tokens of its prompt and
    of its answer."""

    arrival: Array
    input: Array
    output: Array
    closed: bool

    def __len__(self) -> int:
        return len(self.input)


def trace_of(requests: Requests, folder: Path) -> Trace:
    """Drawn by the settings, or read from their file."""
    if requests.file is not None:
        return read_trace(folder / requests.file)
    rng = np.random.default_rng([requests.seed, 44])
    count = requests.count
    closed = requests.arrivals == "closed"
    if closed or requests.rate is None:
        arrival = np.full(count, -math.inf)
    elif requests.arrivals == "poisson":
        arrival = rng.exponential(1 / requests.rate.value, count).cumsum()
    else:
        arrival = np.arange(count) / requests.rate.value
    return Trace(arrival, lengths(requests.input, count, rng), lengths(requests.output, count, rng), closed)


def lengths(of: Lengths, count: int, rng: np.random.Generator) -> Array:
    """Whole numbers of 1 or more ``[count]``."""
    if of.mean is None:
        return rng.integers(of.low, of.high, count, endpoint=True)
    drawn = rng.normal(of.mean, of.std, count) if of.std else np.full(count, of.mean)
    return np.maximum(np.rint(drawn), 1).astype(np.int64)


def read_trace(file: Path) -> Trace:
    """CSV with a header of arrival, input and output; in the order of arrival."""
    rows: list[tuple[float, int, int]] = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            if set(reader.fieldnames or ()) < set(COLUMNS):
                held = ", ".join(reader.fieldnames or ["none"])
                raise UsageError(f"its columns are {held}; taken are {', '.join(COLUMNS)}", where=file)
            for row in reader:
                rows.append(_row(row, f"{file}:{reader.line_num}"))
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}", where=file) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"is no CSV: {error}", where=file) from error
    if not rows:
        raise UsageError("holds no request", where=file)
    rows.sort(key=lambda r: r[0])
    arrival, given, asked = zip(*rows, strict=True)
    return Trace(np.array(arrival), np.array(given), np.array(asked), False)


def _row(row: dict[str, Any], where: str) -> tuple[float, int, int]:
    try:
        found = float(row["arrival"]), int(row["input"]), int(row["output"])
    except (TypeError, ValueError) as error:
        raise UsageError(f"{dict(row)} is no request: seconds, whole tokens, whole tokens", where=where) from error
    if not 0 <= found[0] < math.inf or min(found[1:]) < 1:
        raise UsageError(f"{dict(row)}: arrival is 0 or later, input and output are 1 token or more", where=where)
    return found
