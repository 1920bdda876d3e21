"""Delta Lake: the files that the log says are live, at the newest version, which is pinned.

Parquet files are read by SQL, values of partitions from the log. Tables with deletion vectors or mapped columns are
streamed by the package ``deltalake``. Footers tell spans; where they do not, the log does for whole numbers, dates and
booleans (its text is truncated, its times are cut to milliseconds, its floats may hide NaN).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from nett.core.errors import missing_extra
from nett.lake.formats import Unreadable
from nett.lake.formats.live import live_files, read_by_package, read_by_sql, relation
from nett.lake.formats.streaming import Streamed, made_plain, plain
from nett.lake.formats.text_kinds import partition_columns, partition_span
from nett.lake.place import is_local
from nett.lake.remote import secrets
from nett.lake.table import File, Span, Table

LOG = "/_delta_log/"


def root_of(name: str) -> str | None:
    """The folder above the log that this file is of."""
    above, log, _ = f"/{name}".rpartition(LOG)
    return above[1:] if log and name.endswith((".json", ".parquet")) else None


def describe(name: str, files: Sequence[File]) -> Table:
    """The live files of the newest version."""
    import pyarrow as pa

    root = next(f.path.rpartition(LOG)[0] for f in files if LOG in f.path)
    try:
        table = _opened(root)
        version, schema = table.version(), pa.schema(table.schema().to_arrow())
        actions = pa.table(table.get_add_actions()).to_pylist()
        keys, mode = table.metadata().partition_columns, table.metadata().configuration.get("delta.columnMapping.mode")
        deleted = pa.RecordBatchReader.from_stream(table.deletion_vectors()).read_all().num_rows
    except Exception as error:  # of the package's many kinds, each with its reason
        raise Unreadable(f"its log cannot be read: {str(error).splitlines()[0][:200]}") from error
    paths = [p if "://" in p else f"{root}/{p}" for p in (unquote(a["path"]) for a in actions)]
    live = live_files(files, [p.removeprefix("file://") for p in paths], root)
    made = None
    if not deleted and mode in (None, "none") and live:
        made = _by_sql(name, live, actions, schema, keys)
    if made is None:
        made = read_by_package(name, "delta", live, schema, {"root": root, "package": True})
    made.version = str(version)
    return made


def _by_sql(
    name: str, live: Sequence[File], actions: Sequence[Mapping[str, Any]], schema: Any, keys: Sequence[str]
) -> Table | None:
    import pyarrow as pa

    told = [tuple((key, _text(action["partition"][key])) for key in keys) for action in actions]
    files = [replace(file, partition=values) for file, values in zip(live, told, strict=True)]
    data = pa.schema([field for field in schema if field.name not in keys])
    made = read_by_sql(
        name, "delta", files, data, lambda own: [_only(own.get_all_field_indices(n)) for n in data.names]
    )
    if made is None:
        return None
    spans = dict(made.spans)
    for column in made.columns:
        if not column.inner and spans[column.name].low is None:
            spans[column.name] = _logged(spans[column.name], column.kind, column.name, actions)
    columns = list(made.columns)
    rows = [action["num_records"] for action in actions]
    for column in partition_columns(files, len(data)):
        if pa.types.is_string(schema.field(column.name).type):
            column = replace(column, kind="text")
        columns.append(column)
        made.chunk_bytes = {**made.chunk_bytes, column.name: 0}
        if None not in rows:
            spans[column.name] = partition_span(column, files, rows)
    made.columns, made.spans = tuple(columns), spans
    return made


def dataset(table: Table, places: Sequence[int]) -> Streamed:
    """The rows of these top-level columns at the pinned version."""
    import pyarrow as pa

    opened = _opened(table.options["root"], int(table.version or 0))
    schema = pa.schema(opened.schema().to_arrow())
    names = [schema.names[place] for place in places]
    wanted = pa.schema([(f"p{place}", plain(schema.types[place])) for place in places])

    def batches() -> Iterator[Any]:
        for batch in pa.RecordBatchReader.from_stream(opened.scan(columns=names)):
            columns = [made_plain(batch.column(n), t) for n, t in zip(names, wanted.types, strict=True)]
            yield pa.record_batch(columns, schema=wanted)

    return Streamed(wanted, batches)


def _opened(root: str, version: int | None = None) -> Any:
    try:
        from deltalake import DeltaTable
    except ImportError as error:
        raise missing_extra("deltalake", "lake", "tables of Delta Lake") from error
    return DeltaTable(root, version=version, storage_options=None if is_local(root) else secrets())


def _logged(span: Span, kind: str, name: str, actions: Sequence[Mapping[str, Any]]) -> Span:
    """The span that the log tells, if it tells it of every file that has values."""
    if kind not in ("integer", "date", "boolean"):
        return span
    ends, nulls = [], 0
    for action in actions:
        low, high, none = ((action.get(word) or {}).get(name) for word in ("min", "max", "null_count"))
        if none is None or action["num_records"] is None:
            return span
        nulls += none
        if none < action["num_records"]:
            if low is None or high is None:
                return span
            ends += [low, high]
    return Span(min(ends), max(ends), nulls) if ends else span


def _text(value: Any) -> str | None:
    """A value of a partition as the log writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ")
    return None if value is None else str(value)


def _only(found: Sequence[int]) -> int | None:
    return found[0] if found else None


__all__ = ["dataset", "describe", "relation", "root_of"]
