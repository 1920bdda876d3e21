"""The truth about a lake of CSV files, in plain Python: every pair whose columns fit, every row, no pruning.

Written from what the room states of its comparisons, and from nothing of its code: a column is of integers or of
floats if all its values are written plainly so; two such columns are compared as numbers, any others by their text; an
empty field equals an empty field.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})").fullmatch
FLOAT = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?").fullmatch
LONG = re.compile(r"-?[1-9][0-9]{18,}").fullmatch
Edge = tuple[str, str]  # child, parent


@dataclass
class Frame:
    """A table by its columns: the text of each value, None for an empty one, and the kind of the column."""

    name: str
    rows: int
    columns: dict[str, list[str | None]]
    kinds: dict[str, str]


def frames(lake: Path, *, without: str = "") -> list[Frame]:
    """Every CSV file below a folder; ``without``: a column that is left out."""
    found = []
    for file in sorted(lake.rglob("*.csv")):
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
            header, *rows = csv.reader(opened)
        names = [name or f"column{i}" for i, name in enumerate(header)]
        values = [[row[i] or None for row in rows] for i in range(len(names))]
        columns: dict[str, list[str | None]] = {}
        for name, column in zip(names, values, strict=True):
            if name != without:
                columns.setdefault(name, column)
        kinds = {name: kind(column) for name, column in columns.items()}
        found.append(Frame(str(file.relative_to(lake)), len(rows), columns, kinds))
    return [f for f in found if f.columns]


def kind(column: list[str | None]) -> str:
    """integer, float or text, by all the values."""
    there = {v for v in column if v is not None}
    if not there:
        return "text"
    if all(map(INTEGER, there)):
        return "integer"
    return "float" if all(map(FLOAT, there)) and not any(map(LONG, there)) else "text"


def candidates(lake: list[Frame]) -> Iterator[tuple[Frame, Frame]]:
    """Child and parent of every pair whose columns fit, the parents together."""
    for parent in lake:
        for child in lake:
            if child is not parent and child.columns.keys() <= parent.columns.keys():
                yield child, parent


def shares(lake: list[Frame], *, text: bool = False) -> dict[Edge, float]:
    """Of every pair whose columns fit, the share of the child's distinct rows that the parent has."""
    found: dict[Edge, float] = {}
    known: dict[Any, set[Any]] = {}
    last = None
    for child, parent in candidates(lake):
        if parent is not last:
            known, last = {}, parent
        names = tuple(child.columns)
        how = tuple(_how(child.kinds[n], parent.kinds[n], text) for n in names)
        if (names, how) not in known:
            known[names, how] = rows(parent, names, how)
        mine = rows(child, names, how)
        found[child.name, parent.name] = len(mine & known[names, how]) / len(mine) if mine else 1.0
    return found


def rows(frame: Frame, names: tuple[str, ...], how: tuple[str, ...]) -> set[Any]:
    """The distinct rows in these columns, as they are compared."""
    return set(zip(*(_values(frame.columns[n], h) for n, h in zip(names, how, strict=True)), strict=True))


def _how(mine: str, its: str, text: bool) -> str:
    if text or "text" in (mine, its):
        return "text"
    return mine if mine == its else "float"


def _values(column: list[str | None], how: str) -> list[Any]:
    if how == "text":
        return column
    as_number = int if how == "integer" else float
    return [None if v is None else as_number(v) for v in column]


def edges(found: Mapping[Edge, float]) -> set[Edge]:
    """The pairs that are containments."""
    return {pair for pair, share in found.items() if share == 1}
