"""Tables whose log or metadata says which Parquet files are live: SQL reads them where they hold what the table's schema
says; else the format's own package reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nett.lake.formats import Unreadable, parquet
from nett.lake.formats.arrow_types import leaves
from nett.lake.formats.parquet import footer, told_by
from nett.lake.formats.parts import Part, as_option
from nett.lake.table import Column, File, Span, Table


def live_files(files: Sequence[File], paths: Sequence[str], root: str) -> list[File]:
    """The files that the log names, as the walk found them."""
    found = {f.path: f for f in files}
    for path in paths:
        if path not in found:
            if not path.startswith(root + "/"):
                raise Unreadable(
                    f"its log names {path}, which is not below it: it was moved or cloned without its files", "moved"
                )
            raise Unreadable(f"its log names {path}, which is not there", "missing-file")
    return [found[path] for path in paths]


def read_by_sql(
    name: str, format: str, files: Sequence[File], schema: Any, places_of: Callable[[Any], list[int | None]]
) -> Table | None:
    """A table of Parquet files, each column of ``schema`` (Arrow) at the place that ``places_of(schema of the file)``
    says, None where the file lacks it. None where files hold other types or no file has a column."""
    import pyarrow as pa

    footers, renamed = [footer(file) for file in files], []
    parts: dict[tuple[Any, ...], list[int]] = {}
    for number, (metadata, own) in enumerate(footers):
        takes = places_of(own)
        for field, at in zip(schema, takes, strict=True):
            if at is not None and _told(own.field(at).with_name(field.name)) != _told(field):
                return None
        names = [f"\0{i}" for i in range(len(own))]
        for field, at in zip(schema, takes, strict=True):
            if at is not None:
                names[at] = field.name
        renamed.append((metadata, pa.schema([own.field(i).with_name(n) for i, n in enumerate(names)])))
        parts.setdefault((tuple(takes), str(own.types)), []).append(number)
    if not parts or any(all(takes[i] is None for takes, _ in parts) for i in range(len(schema))):
        return None
    found = list(leaves(schema))
    spans, chunks = told_by(renamed, found)
    made = [Part(some, len(footers[some[0]][1]), list(takes)) for (takes, _), some in parts.items()]
    return Table(
        name, format, tuple(files), tuple(leaf.column for leaf in found), sum(m.num_rows for m, _ in footers), spans,
        chunks, {"parts": as_option(made)},
    )  # fmt: skip


def read_by_package(name: str, format: str, files: Sequence[File], schema: Any, options: Mapping[str, Any]) -> Table:
    """A table whose rows its package streams; they are counted when they are read."""
    columns: tuple[Column, ...] = tuple(leaf.column for leaf in leaves(schema))
    empty = dict.fromkeys((c.name for c in columns), Span(nulls=0)) if not files else {}
    return Table(name, format, tuple(files), columns, None if files else 0, empty, {}, options)


def _told(field: Any) -> list[tuple[str, str]]:
    import pyarrow as pa

    return [(leaf.column.name, leaf.column.kind) for leaf in leaves(pa.schema([field]))]


def relation(table: Table) -> str | None:
    """Of files that SQL reads; None where the package does."""
    return None if table.options.get("package") else parquet.relation(table)
