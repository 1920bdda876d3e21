"""A lake in an object store says what the same lake says on disk."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nett
from nett.core.errors import Refused
from support.cli import nett as cli
from support.lakes import TRUTH, write_lake

scan: Any = nett.lake.scan  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    try:
        import moto.server  # noqa: F401
        import s3fs  # noqa: F401
    except ImportError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"needs moto[server] and s3fs: {error}")
    from support.s3 import object_store

    with object_store() as bucket:
        yield bucket


def put(folder: Path, where: str) -> str:
    import s3fs

    system = s3fs.S3FileSystem()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            system.pipe(f"{where}/{file.relative_to(folder)}", file.read_bytes())
    return f"s3://{where}"


def told(path: str, **options: Any) -> dict[str, Any]:
    """Without what is of the place: its root, seconds, the bytes that equal files took to compare."""
    found = scan(path, **options)
    stages = [(s["name"], s["pairs"]) for s in found["stages"]]
    return {k: found[k] for k in ("tables", "edges", "bytes", "warnings")} | {"stages": stages}


def test_a_bucket_says_what_the_folder_says(tmp_path: Path, store: str) -> None:
    write_lake(tmp_path)
    hive = tmp_path / "hive" / "k=a%20b" / "x.parquet"
    hive.parent.mkdir(parents=True)
    pq.write_table(pa.table({"id": [1, 2]}), hive)
    pq.write_table(pa.table({"id": [1, 2], "k": ["a b", "a b"]}), tmp_path / "a[1] é.parquet")
    pq.write_table(pa.table({"id": [7, 8], "k": ["a b", "a b"]}), tmp_path / "a1 é.parquet")
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), pa.schema([("id", pa.int64())])) as writer:
        writer.write_table(pa.table({"id": [1]}))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"id": 2}\n'))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1" + bytes(40))
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "_temporary").mkdir()
    (tmp_path / "_temporary" / "x.csv").write_text("a\n1\n")
    where = put(tmp_path, f"{store}/first lake")
    here = told(str(tmp_path))
    assert {(e["child"], e["parent"]) for e in here["edges"]} >= {(c, p) for c, some in TRUTH.items() for p in some}
    assert ("hive", "a[1] é.parquet") in {(e["child"], e["parent"]) for e in here["edges"]}
    assert told(where) == here and told(where + "/") == here
    assert sum(s["bytes_read"] for s in scan(where)["stages"] if s["name"] == "files") == 0  # etags told


def test_delta_and_iceberg_in_a_bucket(tmp_path: Path, store: str) -> None:
    deltalake = pytest.importorskip("deltalake")
    rows = pa.table({"a": [1, 2, 3], "k": ["x", "y z", "x"]})
    root = f"s3://{store}/versions"
    options = {"AWS_ALLOW_HTTP": "true", "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}
    deltalake.write_deltalake(f"{root}/d", rows, partition_by=["k"], storage_options=options)
    deltalake.DeltaTable(f"{root}/d", storage_options=options).delete("a = 1")
    pytest.importorskip("pyiceberg")
    from support.iceberg import write_iceberg

    table = write_iceberg(f"{root}/i", rows)
    table.delete("a = 1")
    pq.write_table(rows.slice(1), tmp_path / "rest.parquet")
    put(tmp_path, f"{store}/versions")
    found, names = told(root), ["d", "i", "rest.parquet"]
    assert {(e["child"], e["parent"]) for e in found["edges"]} == {(c, p) for c in names for p in names if c != p}
    assert not found["warnings"]


def test_what_is_not_there_is_said(store: str) -> None:
    with pytest.raises(Refused, match="no such file or folder"):
        scan(f"s3://{store}/nowhere")
    with pytest.raises(Refused, match=r"cannot be listed|no such"):
        scan("s3://no-such-bucket-here/x")
    with pytest.raises(Refused, match="not known to fsspec"):
        scan("nosuch://x/y")


def test_the_command_takes_a_url(tmp_path: Path, store: str) -> None:
    write_lake(tmp_path)
    where = put(tmp_path, f"{store}/cli")
    assert "16 containments" in cli("lake", "scan", where).succeeded().out


def test_any_file_system_of_fsspec(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    write_lake(tmp_path)
    memory = fsspec.filesystem("memory")
    for file in tmp_path.rglob("*"):
        if file.is_file():
            memory.pipe(f"/somewhere/{file.relative_to(tmp_path)}", file.read_bytes())
    assert told("memory://somewhere") == told(str(tmp_path))


def test_names_that_are_patterns_are_one_file_each(tmp_path: Path) -> None:
    for number, name in enumerate(["a[1]", "a1", "b*", "bx", "c?", "cx", "d{1,2}", "d1", "[", "e\\f", "**"]):
        pq.write_table(pa.table({"v": [number]}), tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.csv").write_text(f"v\n{number}\n")
        (tmp_path / f"{name}.jsonl").write_text(f'{{"v": {number}}}\n')
    kinds = ("csv", "jsonl", "parquet")
    names = {f.stem for f in tmp_path.iterdir()}
    wanted = {(f"{n}.{a}", f"{n}.{b}") for n in names for a in kinds for b in kinds if a != b}
    assert {(e["child"], e["parent"]) for e in scan(str(tmp_path))["edges"]} == wanted
