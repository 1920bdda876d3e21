"""Arrow IPC: files (Feather V2), whose columns are read apart, and streams, which are read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from nett.lake.formats import Unreadable
from nett.lake.formats.arrow_types import leaves, unite
from nett.lake.formats.parts import Part, as_option, parts_of
from nett.lake.formats.streaming import Streamed, made_plain, plain
from nett.lake.formats.text_kinds import partition_columns, partition_span
from nett.lake.place import is_local, open_file
from nett.lake.table import File, Span, Table

ENDINGS = (".arrow", ".feather", ".ipc", ".arrows")
MAGIC, OLD = b"ARROW1", b"FEA1"


def describe(name: str, files: Sequence[File]) -> Table:
    """A table of one file or several, by their schemas; the rows of files by the headers of their batches."""
    schemas, rows = [], list[int]()
    for file in files:
        schema, count = _looked_at(file)
        schemas.append(schema)
        rows += [] if count is None else [count]
    first, parts = parts_of([s.names for s in schemas], [str(s.types) for s in schemas], files)
    widest = unite(schemas, schemas[first])
    keys = {key for key, _ in files[0].partition}
    columns = [leaf.column for leaf in leaves(widest) if leaf.column.name not in keys]
    counted = len(rows) == len(files)
    spans = dict[str, Span]()
    for column in partition_columns(files, len(widest)):
        columns.append(column)
        if counted:
            spans[column.name] = partition_span(column, files, rows)
    options = {"parts": as_option(parts)}
    return Table(
        name, "arrow", tuple(files), tuple(columns), sum(rows) if counted else None, spans, options=options,
        whole=not counted,
    )  # fmt: skip


def relation(table: Table) -> None:
    """SQL does not read it."""
    return None


def dataset(table: Table, places: Sequence[int]) -> Streamed:
    """The rows of these top-level columns, batch by batch."""
    import pyarrow as pa

    types = dict.fromkeys(places, pa.string())
    parts = [Part(**part) for part in table.options["parts"]]
    widest = unite(*_schemas(table, parts))
    types |= {place: plain(widest.types[place]) for place in places if place < len(widest)}
    schema = pa.schema([(f"p{place}", types[place]) for place in places])

    def batches() -> Iterator[Any]:
        for part in parts:
            takes = {p: part.takes[p] for p in places if p < len(part.takes)}
            for number in part.files:
                file = table.files[number]
                told = [value for _, value in file.partition]
                for batch in _batches(file, sorted({at for at in takes.values() if at is not None})):
                    columns = []
                    for place in places:
                        if place >= len(part.takes):
                            value = pa.scalar(told[place - len(part.takes)], pa.string())
                            columns.append(pa.repeat(value, batch[None]))
                        elif (at := takes[place]) is None:
                            columns.append(pa.nulls(batch[None], types[place]))
                        else:
                            columns.append(made_plain(batch[at], types[place]))
                    yield pa.record_batch(columns, schema=schema)

    return Streamed(schema, batches)


def _schemas(table: Table, parts: Sequence[Part]) -> tuple[list[Any], Any]:
    """(a schema of each part, that of the widest)."""
    some = [_opened(table.files[part.files[0]])[0].schema for part in parts]
    return some, max(some, key=len)


def _looked_at(file: File) -> tuple[Any, int | None]:
    """(schema, rows where they are told without reading them)."""
    import pyarrow as pa

    try:
        reader, is_file = _opened(file)
        if not is_file:
            return reader.schema, None
        if not reader.schema.names:
            return reader.schema, 0
        slim, _ = _opened(file, [0])
        return reader.schema, sum(slim.get_batch(i).num_rows for i in range(slim.num_record_batches))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Unreadable(f"it holds no Arrow data that can be read: {str(error).splitlines()[0][:200]}") from error


def _opened(file: File, fields: Sequence[int] = ()) -> tuple[Any, bool]:
    """(reader of these fields, all where none are named; whether batches are found by a footer)."""
    import pyarrow as pa

    if not file.size:
        raise Unreadable("the file is empty")
    source = pa.memory_map(file.path) if is_local(file.path) else pa.PythonFile(open_file(file.path))
    head = source.read(6)
    source.seek(0)
    if head.startswith(OLD):
        raise Unreadable("it is Feather of version 1, which Arrow no longer writes; write it anew as Arrow IPC")
    options = pa.ipc.IpcReadOptions(included_fields=list(fields))
    if head == MAGIC:
        return pa.ipc.open_file(source, options=options), True
    return pa.ipc.open_stream(source, options=options), False


def _batches(file: File, fields: Sequence[int]) -> Iterator[dict[int | None, Any]]:
    """Each batch as {number of the field: array, None: rows}."""
    reader, is_file = _opened(file, fields or [0])
    some = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
    for batch in some:
        yield {None: batch.num_rows, **dict(zip(fields, batch.columns, strict=False))}
