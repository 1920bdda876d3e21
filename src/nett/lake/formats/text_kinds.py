"""What kind a column of plain text is, by all of its values: in Python here, in an engine's words with the same
expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nett.lake.table import Column, File, Span

NUMBER = "-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][-+]?[0-9]+)?"  # written plainly: 007 and +5 are text
WHOLE = "-?(0|[1-9][0-9]{0,17})"  # what 64 bits hold
LONG = "-?[1-9][0-9]{18,}"  # whole numbers that only text holds


def kind_of_texts(values: Iterable[str | None]) -> tuple[str, float | None, float | None]:
    """(kind, smallest and largest number among the values)."""
    there = {v for v in values if v is not None}
    numbers = [v for v in there if re.fullmatch(NUMBER, v, re.ASCII)]
    low, high = (min(map(float, numbers)), max(map(float, numbers))) if numbers else (None, None)
    if not there or len(numbers) < len(there) or any(re.fullmatch(LONG, v) for v in numbers):
        return "text", low, high
    return ("integer" if all(re.fullmatch(WHOLE, v) for v in numbers) else "float"), low, high


def partition_columns(files: Iterable[File], place: int) -> list[Column]:
    """The columns that the folders of a table's files tell, from the top-level column ``place`` on."""
    some = list(files)
    values = [dict(f.partition) for f in some]
    names = [name for name, _ in some[0].partition]
    return [
        Column(name, kind_of_texts(v[name] for v in values)[0], place + i, raw=True) for i, name in enumerate(names)
    ]


def partition_span(column: Column, files: Iterable[File], rows: Iterable[int]) -> Span:
    """Exact: from the values of all files that have rows."""
    told = [(dict(f.partition)[column.name], n) for f, n in zip(files, rows, strict=True) if n]
    _, low, high = kind_of_texts(v for v, _ in told)
    return Span(low, high, sum(n for v, n in told if v is None))
