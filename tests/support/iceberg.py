"""Iceberg tables on disk without a catalog: each commit writes the next metadata file, as a catalog would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.catalog.noop import NoopCatalog
from pyiceberg.io import load_file_io
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.schema import assign_fresh_schema_ids
from pyiceberg.serializers import ToOutputFile
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.metadata import new_table_metadata
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.table.update import update_table_metadata


class Files(NoopCatalog):
    """A catalog that is only the files."""

    written = 0

    def commit_table(self, table: Table, requirements: Any, updates: Any) -> CommitTableResponse:
        for requirement in requirements:
            requirement.validate(table.metadata)
        metadata = update_table_metadata(table.metadata, updates, metadata_location=table.metadata_location)
        return CommitTableResponse(metadata=metadata, metadata_location=self.write(metadata, table.io))

    def write(self, metadata: Any, io: Any) -> str:
        path = f"{metadata.location}/metadata/{self.written:05d}-test.metadata.json"
        self.written += 1
        ToOutputFile.table_metadata(metadata, io.new_output(path), overwrite=True)
        return path


def write_iceberg(folder: Path | str, rows: pa.Table) -> Table:
    """A table of one snapshot, in a folder or below a URL; append to it, delete from it, change its schema."""
    from pyiceberg.io.pyarrow import _pyarrow_to_schema_without_ids

    schema = assign_fresh_schema_ids(_pyarrow_to_schema_without_ids(rows.schema))
    where, told = str(folder), {"py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO"}
    if isinstance(folder, Path):
        where, told = f"file://{folder}", {}
        (folder / "metadata").mkdir(parents=True)
    metadata = new_table_metadata(
        schema, UNPARTITIONED_PARTITION_SPEC, UNSORTED_SORT_ORDER, where, {"format-version": "2"}
    )
    files, io = Files("files"), load_file_io(told, where)
    table = Table(("lake", "test"), metadata, files.write(metadata, io), io, files)
    table.append(rows)
    return table


def delete_by_position(table: Table, rows: list[int]) -> None:
    """A delete file that names rows of the first data file, which pyiceberg reads but does not write."""
    from unittest.mock import patch

    import pyarrow.parquet as pq
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent, ManifestWriterV2
    from pyiceberg.typedef import Record

    data = next(iter(table.scan().plan_files())).file
    path = f"{table.location()}/data/deletes.parquet"
    ids = [{b"PARQUET:field_id": str(number).encode()} for number in (2147483546, 2147483545)]
    schema = pa.schema([pa.field("file_path", pa.string(), False, ids[0]), pa.field("pos", pa.int64(), False, ids[1])])
    pq.write_table(pa.table([[data.file_path] * len(rows), rows], schema=schema), path.removeprefix("file://"))
    file = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES, file_path=path, file_format=FileFormat.PARQUET, partition=Record(),
        record_count=len(rows), file_size_in_bytes=Path(path.removeprefix("file://")).stat().st_size,
    )  # fmt: skip
    file.spec_id = 0
    meta = ManifestWriterV2._meta.fget  # type: ignore[attr-defined]
    with (
        patch.object(ManifestWriterV2, "content", lambda _: ManifestContent.DELETES),
        patch.object(ManifestWriterV2, "_meta", property(lambda self: {**meta(self), "content": "deletes"})),
        table.transaction() as change,
        change.update_snapshot().fast_append() as append,
    ):
        append.append_data_file(file)
