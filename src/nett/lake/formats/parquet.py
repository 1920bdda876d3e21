"""Parquet: columns, rows and spans from the footers alone.

Traps of statistics, each of which leaves a span unknown: minima and maxima of text and bytes (writers truncate them),
NaN as minimum or maximum, INT96, columns in which a row group has no statistics. NaN is never in a span.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from nett.lake.formats import Unreadable, literal
from nett.lake.formats.arrow_types import Leaf, leaves
from nett.lake.table import Column, File, Span, Table

ENDINGS = (".parquet", ".pq", ".parq")
_SPANNED = frozenset({"integer", "decimal", "float", "boolean", "date", "timestamp", "instant", "time"})


def describe(name: str, files: Sequence[File]) -> Table:
    """One table of one or several files, from their footers. Unreadable if a footer does not hold, or the files do
    not have the same columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, schema, chunks = 0, None, dict[str, int]()
    spans: dict[str, Span] = {}
    found: list[Leaf] = []
    for number, file in enumerate(files):
        try:
            with pq.ParquetFile(file.path) as opened:
                metadata, own = opened.metadata, opened.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            raise Unreadable(f"its footer cannot be read: {_short(error)}") from error
        if schema is None:
            schema, found = own, list(leaves(own))
        elif not own.remove_metadata().equals(schema.remove_metadata()):
            raise Unreadable(f"{file.path} has other columns than {files[0].path}")
        rows += metadata.num_rows
        for leaf in found:
            span, size = _span(metadata, leaf)
            chunks[leaf.column.name] = chunks.get(leaf.column.name, 0) + size
            spans[leaf.column.name] = span if number == 0 else joined(spans[leaf.column.name], span)
    assert schema is not None
    return Table(name, "parquet", tuple(files), tuple(leaf.column for leaf in found), rows, spans, chunks)


def relation(table: Table) -> str:
    names = ", ".join(f"p{i}" for i in range(1 + max((c.place for c in table.columns), default=-1)))
    paths = ", ".join(literal(f.path) for f in table.files)
    return f"read_parquet([{paths}], hive_partitioning=false) AS t({names})"


def joined(one: Span, other: Span) -> Span:
    """The span of both: unknown where one is."""
    known = None not in (one.low, other.low)
    return Span(
        min(one.low, other.low) if known else None,
        max(one.high, other.high) if known else None,
        one.nulls + other.nulls if one.nulls is not None and other.nulls is not None else None,
    )


def _span(metadata: Any, leaf: Leaf) -> tuple[Span, int]:
    """The span of a column over all row groups, and its compressed bytes."""
    size, nulls, low, high = 0, 0, None, None
    known = leaf.plain and leaf.column.kind in _SPANNED
    counted = leaf.plain
    for chunk in _chunks(metadata, leaf):
        size += sum(c.total_compressed_size for c in chunk)
        told = chunk[0].statistics if leaf.plain else None
        if told is None or not told.has_null_count:
            counted = False
        else:
            nulls += told.null_count
        if not known or told is None:
            known = False
            continue
        if told.has_min_max:
            try:
                least, most = told.min, told.max
            except (ValueError, OverflowError, ImportError):  # such as nanoseconds that datetime cannot hold
                known = False
                continue
            if any(isinstance(v, float) and math.isnan(v) for v in (least, most)):
                known = False
                continue
            low = least if low is None else min(low, least)
            high = most if high is None else max(high, most)
        elif not (told.has_null_count and told.null_count == told.num_values + told.null_count):
            known = False  # a chunk of values, and nothing said of them
    return Span(low if known else None, high if known else None, nulls if counted else None), size


def _chunks(metadata: Any, leaf: Leaf) -> Iterator[list[Any]]:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        yield [group.column(i) for i in range(leaf.first, leaf.first + leaf.width)]


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


__all__ = ["ENDINGS", "Column", "describe", "joined", "relation"]
