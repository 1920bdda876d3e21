"""Tables written in the format that they had: what a plan pins of it, and the writing."""

from __future__ import annotations

import base64
import contextlib
import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from nett.lake.exact import NotExact
from nett.lake.formats import literal
from nett.lake.rebuild import Strict
from nett.lake.table import Table
from nett.lake.workbench import Workbench, reading

_HEAD = 1 << 16  # bytes before the first row of a text file
_CODECS = {"SNAPPY": "snappy", "GZIP": "gzip", "BROTLI": "brotli", "ZSTD": "zstd", "LZ4": "lz4", "UNCOMPRESSED": "none"}


class Form(Strict):
    """How a table is written. Parquet: ``schema`` is the Arrow schema (IPC, base64), ``packing`` the codec. Text:
    ``head`` is what stands before the first row, as it stands there; ``packing`` the file's compression."""

    format: Literal["parquet", "delimited"]
    columns: tuple[tuple[str, str], ...]  # name, type in DuckDB's words
    packing: Literal["snappy", "gzip", "brotli", "zstd", "lz4", "none"]
    schema_: str = ""
    head: str = ""
    delimiter: str = ""


def form_of(bench: Workbench, table: Table) -> Form:
    """The form of a table; NotExact where nett cannot write one like it."""
    columns = tuple((own.name, own.type) for own in bench.own(table))
    with reading(table):
        return _parquet(table, columns) if table.format == "parquet" else _delimited(table, columns)


def _parquet(table: Table, columns: tuple[tuple[str, str], ...]) -> Form:
    import pyarrow.parquet as pq

    with pq.ParquetFile(table.files[0].path) as opened:
        schema, groups = opened.schema_arrow, opened.metadata.num_row_groups
        codec = opened.metadata.row_group(0).column(0).compression if groups else "SNAPPY"
    pinned = base64.b64encode(schema.serialize().to_pybytes()).decode()
    return Form(format="parquet", columns=columns, packing=_CODECS.get(codec, "zstd"), schema_=pinned)  # type: ignore[arg-type]


def _delimited(table: Table, columns: tuple[tuple[str, str], ...]) -> Form:
    options, path = table.options, table.files[0].path
    if options["quote"] not in (None, '"') or options["escape"] not in (None, '"'):
        raise NotExact(
            f"it is quoted with {options['quote']!r}, escaped with {options['escape']!r}; nett writes '\"' only"
        )
    if not options["delim"] or len(options["delim"]) != 1:
        raise NotExact(f"its fields are separated by {options['delim']!r}; nett writes single characters")
    if options["encoding"] is not None:
        raise NotExact(f"it is encoded as {options['encoding']}; nett writes UTF-8 only")
    packing: Literal["gzip", "zstd", "none"] = (
        "gzip" if path.endswith(".gz") else "zstd" if path.endswith(".zst") else "none"
    )
    lines = int(options["skip"] or 0) + bool(options["header"])
    return Form(
        format="delimited",
        columns=columns,
        packing=packing,
        head=_head(path, packing, lines),
        delimiter=options["delim"],
    )


def _head(path: str, packing: str, lines: int) -> str:
    with _opened(path, packing) as file:
        found = b"".join(file.readline(_HEAD) for _ in range(lines))
    try:
        text = found.decode()
    except UnicodeDecodeError as error:
        raise NotExact("its first lines are no UTF-8") from error
    if len(found) >= _HEAD or text.count('"') % 2 or (lines and not text.endswith("\n")):
        raise NotExact("the line of its column names goes over several lines, or is very long")
    return text


@contextlib.contextmanager
def _opened(path: str, packing: str) -> Iterator[Any]:
    if packing == "zstd":
        import pyarrow as pa

        with pa.CompressedInputStream(pa.OSFile(path), "zstd") as stream:
            import io

            yield io.BytesIO(stream.read(1 << 20))
    else:
        with gzip.open(path) if packing == "gzip" else open(path, "rb") as file:
            yield file


def write(bench: Workbench, sql: str, form: Form, path: Path) -> None:
    """The rows of a query (columns c0, c1, …) as a file of this form, on disk when this returns."""
    if form.format == "parquet":
        _write_parquet(bench, sql, form, path)
    else:
        _write_delimited(bench, sql, form, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def schema_of(form: Form) -> Any:
    """The Arrow schema that is pinned."""
    import pyarrow as pa

    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(form.schema_)))


def _write_parquet(bench: Workbench, sql: str, form: Form, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = schema_of(form)
    with pq.ParquetWriter(path, schema, compression=form.packing) as writer:
        for batch in bench.batches(sql, 1 << 17):
            table = pa.Table.from_batches([batch]).rename_columns(schema.names).cast(schema)
            writer.write_table(table, row_group_size=1 << 20)


def _write_delimited(bench: Workbench, sql: str, form: Form, path: Path) -> None:
    import pyarrow as pa

    rows = path.with_name(f"{path.name}.rows")
    # The rows alone: what stood before the first of them is put there as it stood.
    marks = f"DELIMITER {literal(form.delimiter)}, QUOTE '\"', ESCAPE '\"', NULLSTR ''"
    bench.db.execute(f"COPY ({sql}) TO {literal(str(rows))} (FORMAT csv, HEADER false, COMPRESSION none, {marks})")
    with rows.open("rb") as source, pa.OSFile(str(path), "wb") as file:
        packed = file if form.packing == "none" else pa.CompressedOutputStream(file, form.packing)
        packed.write(form.head.encode())
        while piece := source.read(1 << 20):
            packed.write(piece)
        packed.close()
    rows.unlink()


def same_form(one: Form, other: Form) -> bool:
    """Whether two tables have the same columns and types, as their files give them."""
    if one.format != other.format or one.columns != other.columns:
        return False
    if one.format == "parquet":
        return bool(schema_of(one).equals(schema_of(other), check_metadata=True))
    return one.head == other.head and one.delimiter == other.delimiter and one.packing == other.packing
