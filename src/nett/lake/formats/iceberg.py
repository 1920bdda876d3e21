"""Iceberg: the files of the current snapshot by the newest ``metadata/*.metadata.json``, without a catalog; pinned.

Columns are found by their ids, so files from before a column was renamed read right. Tables with deleted rows, other
files than Parquet, files without ids or defaults of new columns are streamed by the package ``pyiceberg``; what it does
not read (equality deletes) is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from nett.core.errors import missing_extra
from nett.lake.formats import Unreadable
from nett.lake.formats.live import live_files, read_by_package, read_by_sql, relation
from nett.lake.formats.streaming import Streamed, made_plain, plain
from nett.lake.place import is_local
from nett.lake.table import File, Table

ENDING = ".metadata.json"
_ID = b"PARQUET:field_id"


def root_of(name: str) -> str | None:
    """The folder above ``metadata`` that this file is of."""
    above, folder, file = f"/{name}".rpartition("/metadata/")
    return above[1:] if folder and "/" not in file and file.endswith(ENDING) else None


def describe(name: str, files: Sequence[File]) -> Table:
    """The live files of the current snapshot."""
    newest = max((f for f in files if f.path.endswith(ENDING) and "/metadata/" in f.path), key=_order)
    root = newest.path.rpartition("/metadata/")[0]
    try:
        table = _opened(newest.path)
        schema, snapshot = _schema(table), table.current_snapshot()
        named = [] if snapshot is None else _paths(table, snapshot)
    except Exception as error:  # of the package's many kinds, each with its reason
        raise _unread(error) from error
    options = {"metadata": newest.path, "package": True}
    if snapshot is None:
        return read_by_package(name, "iceberg", (), schema, options)
    live_files(files, named, root)  # before any is opened
    try:
        manifests = snapshot.manifests(table.io)
        live_files(files, [_plain(m.manifest_path) for m in manifests], root)
        tasks = list(table.scan(snapshot_id=snapshot.snapshot_id).plan_files())
    except Unreadable:
        raise
    except Exception as error:
        raise _unread(error) from error
    tasks.sort(key=lambda task: str(task.file.file_path))
    live = live_files(files, [_plain(task.file.file_path) for task in tasks], root)
    live_files(files, [_plain(d.file_path) for task in tasks for d in task.delete_files], root)
    made = None
    plain_files = all(not t.delete_files and t.file.file_format.name == "PARQUET" for t in tasks)
    if tasks and plain_files and not any(_fills(field) for field in table.schema().fields):
        ids = [field.field_id for field in table.schema().fields]
        made = read_by_sql(name, "iceberg", live, schema, lambda own: _places(own, ids))
    made = made or read_by_package(name, "iceberg", live, schema, options)
    made.version = str(snapshot.snapshot_id)
    return made


def dataset(table: Table, places: Sequence[int]) -> Streamed:
    """The rows of these top-level columns of the pinned snapshot."""
    import pyarrow as pa

    opened = _opened(table.options["metadata"])
    schema = _schema(opened)
    names = [schema.names[place] for place in places]
    wanted = pa.schema([(f"p{place}", plain(schema.types[place])) for place in places])

    def batches() -> Iterator[Any]:
        if table.version is None:
            return
        scan = opened.scan(snapshot_id=int(table.version), selected_fields=tuple(names))
        for batch in scan.to_arrow_batch_reader():
            columns = [made_plain(batch.column(n), t) for n, t in zip(names, wanted.types, strict=True)]
            yield pa.record_batch(columns, schema=wanted)

    return Streamed(wanted, batches)


def _opened(path: str) -> Any:
    try:
        from pyiceberg.table import StaticTable
    except ImportError as error:
        raise missing_extra("pyiceberg", "lake", "tables of Iceberg") from error
    more = {} if is_local(path) else {"py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO"}
    return StaticTable.from_metadata(path, properties=more)


def _schema(table: Any) -> Any:
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    return schema_to_pyarrow(table.schema(), include_field_ids=False)


def _order(file: File) -> tuple[int, str, str]:
    """Newer files last: by the number that their names begin with, then by the time of the change."""
    number = re.match(r"v?(\d+)", file.path.rpartition("/")[2])
    return int(number[1]) if number else -1, file.mark, file.path


def _paths(table: Any, snapshot: Any) -> list[str]:
    return [_plain(snapshot.manifest_list)] if snapshot.manifest_list else []


def _plain(path: str) -> str:
    """A path as the walk names it."""
    return re.sub("^file:/*", "/", path)


def _places(own: Any, ids: Sequence[int]) -> list[int | None]:
    """Where the columns of these ids are; a file without ids has none of them, and is left to the package."""
    known = {int(f.metadata[_ID]): i for i, f in enumerate(own) if f.metadata and _ID in f.metadata}
    return [known.get(number) for number in ids]


def _fills(field: Any) -> bool:
    """Whether files that lack the column do not mean NULL."""
    return getattr(field, "initial_default", None) is not None


def _unread(error: Exception) -> Unreadable:
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, FileNotFoundError):
        return Unreadable(f"its metadata names what is not there: {reason}", "moved")
    return Unreadable(f"its metadata or files cannot be read: {reason}")


__all__ = ["dataset", "describe", "relation", "root_of"]
