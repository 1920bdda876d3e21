"""Parquet: columns, rows and spans from the footers alone.

Traps of statistics, each of which leaves a span unknown: minima and maxima of text and bytes (writers truncate them),
NaN as minimum or maximum, INT96, columns in which a row group has no statistics. NaN is never in a span.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from nett.lake.comparing import FINE, TIMES
from nett.lake.formats import Unreadable
from nett.lake.formats.arrow_types import Leaf, leaves, unite
from nett.lake.formats.parts import as_option, parts_of, union
from nett.lake.formats.text_kinds import partition_columns, partition_span
from nett.lake.place import open_file
from nett.lake.table import Column, File, Span, Table

ENDINGS = (".parquet", ".pq", ".parq")
_SPANNED = frozenset({"integer", "decimal", "float", "boolean", "date", *(k + f for k in TIMES for f in ("", FINE))})


def describe(name: str, files: Sequence[File]) -> Table:
    """One table of one or several files, from their footers. Unreadable if a footer does not hold, or if the files do
    not go together."""
    footers = [footer(file) for file in files]
    keys = {key for key, _ in files[0].partition}
    schemas = [schema for _, schema in footers]
    first, parts = parts_of([s.names for s in schemas], [str(s.types) for s in schemas], files)
    widest = unite(schemas, schemas[first])
    found = [
        leaf for leaf in leaves(widest) if leaf.column.name not in keys
    ]  # what folders say comes first, as in Hive
    spans, chunks = told_by(footers, found)
    columns = [leaf.column for leaf in found]
    rows = [metadata.num_rows for metadata, _ in footers]
    for column in partition_columns(files, len(widest)):
        columns.append(column)
        spans[column.name] = partition_span(column, files, rows)
        chunks[column.name] = 0
    options = {"parts": as_option([replace(part, how=None) for part in parts])}
    return Table(name, "parquet", tuple(files), tuple(columns), sum(rows), spans, chunks, options)


def relation(table: Table) -> str:
    return union(table, lambda paths, width, how: f"read_parquet({paths}, hive_partitioning=false)")


def footer(file: File) -> tuple[Any, Any]:
    """(metadata, Arrow schema) of a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_file(file.path) as raw, pq.ParquetFile(raw) as opened:
            return opened.metadata, opened.schema_arrow.remove_metadata()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Unreadable(f"its footer cannot be read: {_short(error)}") from error


def told_by(footers: Sequence[tuple[Any, Any]], found: Sequence[Leaf]) -> tuple[dict[str, Span], dict[str, int]]:
    """(spans, compressed bytes) of columns, over all files. A file that lacks a column has NULL in all of its rows."""
    spans: dict[str, Span] = {}
    chunks = dict.fromkeys((leaf.column.name for leaf in found), 0)
    lacking = dict.fromkeys(chunks, 0)
    for metadata, schema in footers:
        own = {leaf.column.name: leaf for leaf in leaves(schema)}
        for name in chunks:
            if name not in own:
                lacking[name] += metadata.num_rows
                continue
            span, size = _span(metadata, own[name])
            chunks[name] += size
            spans[name] = joined(spans[name], span) if name in spans else span
    for name, rows in lacking.items():
        span = spans.setdefault(name, Span(nulls=0))
        spans[name] = Span(span.low, span.high, None if span.nulls is None else span.nulls + rows)
    return spans, chunks


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


__all__ = ["ENDINGS", "Column", "describe", "footer", "joined", "relation", "told_by"]
