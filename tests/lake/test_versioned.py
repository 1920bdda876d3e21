"""Delta and Iceberg: the rows of the newest version and no others; what a package cannot read is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nett
from nett.lake.discovery import find_tables
from nett.lake.place import Place

deltalake = pytest.importorskip("deltalake")
pytest.importorskip("pyiceberg")

scan: Any = nett.lake.scan  # type: ignore[attr-defined]
ROWS = pa.table({"a": [1, 2, 3, 4], "k": ["x", "y z", None, "1"], "f": [0.5, 1.5, 2.5, None]})


def edges(folder: Path) -> set[tuple[str, str]]:
    told = scan(str(folder))
    assert not told["warnings"]
    return {(e["child"], e["parent"]) for e in told["edges"]}


def names(folder: Path) -> dict[str, tuple[int, int]]:
    return {t["name"]: (t["rows"], t["columns"]) for t in scan(str(folder))["tables"]}


def equal(*tables: str) -> set[tuple[str, str]]:
    return {(c, p) for c in tables for p in tables if c != p}


def warned(folder: Path) -> dict[str, str]:
    return {w["table"]: w["warning"] for w in scan(str(folder))["warnings"]}


@pytest.mark.parametrize("keys", [[], ["k"], ["a"]])
def test_delta_holds_what_its_newest_version_holds(tmp_path: Path, keys: list[str]) -> None:
    deltalake.write_deltalake(tmp_path / "d", ROWS.slice(0, 3), partition_by=keys)
    deltalake.write_deltalake(tmp_path / "d", ROWS.slice(3), mode="append")
    pq.write_table(ROWS, tmp_path / "all.parquet")
    pq.write_table(ROWS.slice(1), tmp_path / "rest.parquet")
    assert edges(tmp_path) == equal("d", "all.parquet") | {("rest.parquet", "d"), ("rest.parquet", "all.parquet")}
    deltalake.DeltaTable(tmp_path / "d").delete("a = 1")  # the row's file stays, and is no longer live
    assert edges(tmp_path) == equal("d", "rest.parquet") | {("rest.parquet", "all.parquet"), ("d", "all.parquet")}
    assert names(tmp_path) == {"d": (3, 3), "all.parquet": (4, 3), "rest.parquet": (3, 3)}
    (table,) = (t for t in find_tables(Place(str(tmp_path)))[0] if t.name == "d")
    assert table.version == "2" and table.format == "delta"


def test_delta_of_all_rows_deleted_and_of_columns_added(tmp_path: Path) -> None:
    deltalake.write_deltalake(tmp_path / "gone", ROWS)
    deltalake.DeltaTable(tmp_path / "gone").delete()
    deltalake.write_deltalake(tmp_path / "grown", ROWS.slice(0, 2).select(["k", "a"]))
    deltalake.write_deltalake(tmp_path / "grown", ROWS.slice(2), mode="append", schema_mode="merge")
    cut = ROWS.slice(0, 2).set_column(2, "f", pa.nulls(2, pa.float64()))
    pq.write_table(pa.concat_tables([cut, ROWS.slice(2)]), tmp_path / "all.parquet")
    assert edges(tmp_path) == equal("grown", "all.parquet") | {("gone", "grown"), ("gone", "all.parquet")}
    assert names(tmp_path) == {"gone": (0, 3), "grown": (4, 3), "all.parquet": (4, 3)}


def commit(folder: Path, change: Any) -> None:
    """Rewrite the first entry of a log: (action, content) -> content."""
    path = folder / "_delta_log" / "00000000000000000000.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: change(k, v) for k, v in line.items()}) + "\n" for line in lines))
    for checksum in path.parent.glob("*.crc"):
        checksum.unlink()


def test_delta_with_mapped_columns_is_read_by_its_package(tmp_path: Path) -> None:
    """As ``ALTER TABLE … RENAME COLUMN`` leaves it: the files have the old name, the log maps it."""
    deltalake.write_deltalake(tmp_path / "d", ROWS)

    def mapped(action: str, content: Any) -> Any:
        if action == "protocol":
            return {"minReaderVersion": 2, "minWriterVersion": 5}
        if action == "metaData":
            schema = json.loads(content["schemaString"])
            for number, field in enumerate(schema["fields"], 1):
                field["metadata"] = {
                    "delta.columnMapping.id": number,
                    "delta.columnMapping.physicalName": field["name"],
                }
            schema["fields"][0]["name"] = "renamed"
            content["schemaString"] = json.dumps(schema)
            content["configuration"] = {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "3"}
        return content

    commit(tmp_path / "d", mapped)
    pq.write_table(ROWS.rename_columns(["renamed", "k", "f"]).slice(1), tmp_path / "rest.parquet")
    pq.write_table(ROWS, tmp_path / "old.parquet")
    assert edges(tmp_path) == {("rest.parquet", "d")} and names(tmp_path)["d"] == (4, 3)


def test_delta_with_deletion_vectors_is_read_by_its_package(tmp_path: Path) -> None:
    """The bitmap of rows 1 and 3, inline as the protocol has it: z85 of a magic number and one 64-bit roaring bitmap."""
    import struct

    deltalake.write_deltalake(tmp_path / "d", ROWS)
    # roaring: cookie without runs, one container; key 0, two values; offset 16; the values
    bitmap = struct.pack("<IIHHI2H", 12346, 1, 0, 1, 16, 1, 3)
    data = struct.pack("<IQI", 1681511377, 1, 0) + bitmap
    data += bytes(-len(data) % 4)
    vector = {
        "storageType": "i", "pathOrInlineDv": _z85(data), "sizeInBytes": len(data), "cardinality": 2,
    }  # fmt: skip

    def with_vector(action: str, content: Any) -> Any:
        if action == "protocol":
            features = ["deletionVectors"]
            return {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": features,
                "writerFeatures": features,
            }
        if action == "metaData":
            content["configuration"] = {"delta.enableDeletionVectors": "true"}
        return {**content, "deletionVector": vector} if action == "add" else content

    commit(tmp_path / "d", with_vector)
    pq.write_table(ROWS, tmp_path / "all.parquet")
    pq.write_table(ROWS.take([0, 2]), tmp_path / "kept.parquet")
    assert names(tmp_path)["d"] == (2, 3)
    assert edges(tmp_path) == equal("d", "kept.parquet") | {("d", "all.parquet"), ("kept.parquet", "all.parquet")}


def _z85(data: bytes) -> str:
    letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    told = ""
    for at in range(0, len(data), 4):
        number = int.from_bytes(data[at : at + 4], "big")
        told += "".join(letters[number // 85**i % 85] for i in (4, 3, 2, 1, 0))
    return told


def test_delta_that_does_not_hold(tmp_path: Path) -> None:
    deltalake.write_deltalake(tmp_path / "future", ROWS)
    commit(
        tmp_path / "future",
        lambda action, content: {"minReaderVersion": 99, "minWriterVersion": 99} if action == "protocol" else content,
    )
    deltalake.write_deltalake(tmp_path / "lost", ROWS)
    next((tmp_path / "lost").glob("*.parquet")).unlink()
    deltalake.write_deltalake(tmp_path / "torn", ROWS)
    (tmp_path / "torn" / "_delta_log" / "00000000000000000000.json").write_text('{"add": {')
    assert warned(tmp_path) == {"future": "unreadable", "lost": "missing-file", "torn": "unreadable"}


def test_iceberg_holds_what_its_newest_snapshot_holds(tmp_path: Path) -> None:
    from pyiceberg.types import DoubleType

    from support.iceberg import write_iceberg

    table = write_iceberg(tmp_path / "i", ROWS.slice(0, 2).select(["k", "a"]))
    with table.update_schema() as change:
        change.rename_column("a", "id")
        change.add_column("f", DoubleType())
    later = ROWS.slice(2).rename_columns(["id", "k", "f"])
    table.append(later)
    cut = ROWS.slice(0, 2).set_column(2, "f", pa.nulls(2, pa.float64())).rename_columns(["id", "k", "f"])
    pq.write_table(pa.concat_tables([cut, later]), tmp_path / "all.parquet")
    pq.write_table(later, tmp_path / "rest.parquet")
    assert edges(tmp_path) == equal("i", "all.parquet") | {("rest.parquet", "i"), ("rest.parquet", "all.parquet")}
    table.delete("id < 3")
    assert edges(tmp_path) == equal("i", "rest.parquet") | {("rest.parquet", "all.parquet"), ("i", "all.parquet")}
    assert names(tmp_path) == {"i": (2, 3), "all.parquet": (4, 3), "rest.parquet": (2, 3)}
    (found,) = (t for t in find_tables(Place(str(tmp_path)))[0] if t.name == "i")
    assert found.version == str(table.current_snapshot().snapshot_id)


def test_iceberg_with_deleted_rows_is_read_by_its_package(tmp_path: Path) -> None:
    """A position delete file, as engines that merge on read write it."""
    from support.iceberg import delete_by_position, write_iceberg

    table = write_iceberg(tmp_path / "i", ROWS)
    delete_by_position(table, [1, 3])
    pq.write_table(ROWS, tmp_path / "all.parquet")
    pq.write_table(ROWS.take([0, 2]), tmp_path / "kept.parquet")
    assert edges(tmp_path) == equal("i", "kept.parquet") | {("i", "all.parquet"), ("kept.parquet", "all.parquet")}
    assert names(tmp_path)["i"] == (2, 3)


def test_iceberg_that_was_moved_or_does_not_hold(tmp_path: Path) -> None:
    from support.iceberg import write_iceberg

    write_iceberg(tmp_path / "i", ROWS)
    shutil.copytree(tmp_path / "i", tmp_path / "copied")  # its manifests name the files of the first
    write_iceberg(tmp_path / "m", ROWS)
    (tmp_path / "m").rename(tmp_path / "moved")
    write_iceberg(tmp_path / "lost", ROWS)
    next((tmp_path / "lost").rglob("*.parquet")).unlink()
    write_iceberg(tmp_path / "torn", ROWS)
    for file in (tmp_path / "torn" / "metadata").glob("*.json"):
        file.write_text("{")
    told = warned(tmp_path)
    assert told == {"copied": "moved", "moved": "moved", "lost": "missing-file", "torn": "unreadable"}
    assert names(tmp_path) == {"i": (4, 3)}
