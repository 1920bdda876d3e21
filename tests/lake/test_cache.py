"""What a scan keeps for the next: nothing is read twice, nothing false is said, whatever becomes of the file."""

from __future__ import annotations

import gzip
import os
import random
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nett
from nett.core.errors import UsageError
from support.cli import nett as cli
from support.lakes import write_csv, write_lake

scan: Any = nett.lake.scan  # type: ignore[attr-defined]
LONG_AGO = 1_700_000_000


def age(folder: Path, seconds: int = 0) -> None:
    for file in folder.rglob("*"):
        os.utime(file, (LONG_AGO + seconds, LONG_AGO + seconds))


def read(told: dict[str, Any]) -> int:
    return sum(s["bytes_read"] for s in told["stages"])


def said(told: dict[str, Any]) -> dict[str, Any]:
    stages = [(s["name"], s["pairs"]) for s in told["stages"]]
    return {k: told[k] for k in ("tables", "edges", "warnings")} | {"stages": stages}


def a_lake(folder: Path) -> Path:
    write_lake(folder)
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(b'{"x": 2}\n'))
    (folder / "ragged.csv").write_text("id,name,value\n1,n1,0.25\n2,n2\n3,n3,0.75,9\n" * 50)
    hive = folder / "hive" / "x=1"
    hive.mkdir(parents=True)
    pq.write_table(pa.table({"y": [1.5]}), hive / "a.parquet")
    age(folder)
    return folder


@pytest.mark.parametrize(
    "options", [{}, {"semantics": "bag"}, {"min_containment": 0.5}, {"compare": "text"}, {"ignore": "v*"}]
)
def test_an_unchanged_lake_is_not_read_again(tmp_path: Path, options: dict[str, Any]) -> None:
    lake, cache = a_lake(tmp_path / "lake"), tmp_path / "cache"
    first = scan(str(lake), cache=cache, **options)
    again = scan(str(lake), cache=cache, **options)
    assert read(first) > 0 and read(again) == 0
    assert said(first) == said(again) == said(scan(str(lake), no_cache=True, **options))
    assert {f.suffix for f in cache.iterdir()} == {".sqlite"} and len(list(cache.iterdir())) == 1


def test_only_what_changed_is_read(tmp_path: Path) -> None:
    lake, cache = a_lake(tmp_path / "lake"), tmp_path / "cache"
    scan(str(lake), cache=cache)
    changed = lake / "text" / "filtered.csv"
    changed.write_text(changed.read_text().replace("n1", "zz"))  # the same size
    os.utime(changed, (LONG_AGO + 5, LONG_AGO + 5))
    told = scan(str(lake), cache=cache)
    assert said(told) == said(scan(str(lake), no_cache=True))
    assert ("text/filtered.csv", "base.parquet") not in {(e["child"], e["parent"]) for e in told["edges"]}
    assert 0 < read(told) < read(scan(str(lake), no_cache=True))


def test_a_new_table_checks_only_those_of_its_columns(tmp_path: Path) -> None:
    lake, cache = tmp_path / "lake", tmp_path / "cache"
    lake.mkdir()
    for number in range(6):
        for group in ("a", "b"):
            rows = pa.table({f"{group}1": range(500 * number, 3000), f"{group}2": [0.5] * (3000 - 500 * number)})
            pq.write_table(rows, lake / f"{group}{number}.parquet")
    age(lake)
    scan(str(lake), cache=cache)
    pq.write_table(pa.table({"b1": range(2900, 2950), "b2": [0.5] * 50}), lake / "new.parquet")
    age(lake)
    told = scan(str(lake), cache=cache)
    assert sum(e["child"] == "new.parquet" for e in told["edges"]) == 6
    those = sum(f.stat().st_size for f in lake.glob("b*"))
    assert 0 < read(told) <= 3 * those and read(told) < read(scan(str(lake), no_cache=True)) / 2


def test_a_file_that_may_still_change_is_not_kept(tmp_path: Path) -> None:
    """Written a moment ago, it may be written again within the tick of the clock, at the same size."""
    lake, cache = tmp_path / "lake", tmp_path / "cache"
    write_csv(lake / "a.csv", ["v"], [[1], [2]])
    write_csv(lake / "b.csv", ["v"], [[1], [2], [3]])
    assert len(scan(str(lake), cache=cache)["edges"]) == 1
    told = (lake / "a.csv").stat().st_mtime_ns
    write_csv(lake / "a.csv", ["v"], [[1], [9]])
    os.utime(lake / "a.csv", ns=(told, told))
    assert scan(str(lake), cache=cache)["edges"] == []
    future = told + 3600 * 10**9
    os.utime(lake / "a.csv", ns=(future, future))
    assert read(scan(str(lake), cache=cache)) > 0 and read(scan(str(lake), cache=cache)) > 0


@pytest.mark.parametrize("what", ["text", "cut", "version", "foreign", "folder", "empty", "flipped", "read-only"])
def test_a_damaged_cache_is_made_anew_or_left_out(tmp_path: Path, what: str) -> None:
    lake, cache = a_lake(tmp_path / "lake"), tmp_path / "cache"
    wanted = said(scan(str(lake), cache=cache))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    if what in ("version", "foreign"):
        with sqlite3.connect(file) as database:
            database.execute("PRAGMA user_version = 99" if what == "version" else "DROP TABLE kept")
            database.execute("CREATE TABLE IF NOT EXISTS other (a)")
        database.close()
    elif what == "folder":
        file.unlink()
        file.mkdir()
    elif what == "flipped":
        chance = random.Random(0)
        broken = bytearray(whole)
        for _ in range(400):
            broken[chance.randrange(200, len(broken))] ^= 1 << chance.randrange(8)
        file.write_bytes(bytes(broken))
    elif what == "read-only":
        file.chmod(0o400)
    else:
        file.write_bytes({"text": b"not a database" * 999, "cut": whole[: len(whole) // 2], "empty": b""}[what])
    assert said(scan(str(lake), cache=cache)) == wanted
    assert said(scan(str(lake), cache=cache)) == wanted
    if what not in ("folder", "read-only", "flipped"):
        assert read(scan(str(lake), cache=cache)) == 0


def test_a_cache_that_another_holds_is_left_out(tmp_path: Path) -> None:
    lake, cache = a_lake(tmp_path / "lake"), tmp_path / "cache"
    wanted = said(scan(str(lake), cache=cache))
    (file,) = cache.iterdir()
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        assert said(scan(str(lake), cache=cache)) == wanted
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    assert read(scan(str(lake), cache=cache)) == 0


def test_what_is_gone_is_forgotten(tmp_path: Path) -> None:
    lake, cache = a_lake(tmp_path / "lake"), tmp_path / "cache"
    scan(str(lake), cache=cache)

    def entries() -> int:
        (file,) = cache.iterdir()
        database = sqlite3.connect(file)
        (count,) = database.execute("SELECT count(*) FROM kept").fetchone()
        database.close()
        return int(count)

    before = entries()
    for file in lake.glob("*.parquet"):
        file.unlink()
    scan(str(lake), cache=cache)
    assert 0 < entries() < before / 2


def test_it_is_never_below_the_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = a_lake(tmp_path / "lake")
    with pytest.raises(UsageError, match="below the lake"):
        scan(str(lake), cache=lake / "cache")
    (tmp_path / "link").symlink_to(lake)
    with pytest.raises(UsageError, match="below the lake"):
        scan(str(lake), cache=tmp_path / "link" / "cache")
    monkeypatch.setenv("NETT_CACHE", str(lake / ".cache"))
    scan(str(lake))
    assert not (lake / ".cache").exists()


def test_the_command(tmp_path: Path) -> None:
    lake = a_lake(tmp_path / "lake")
    words = ("lake", "scan", str(lake), "--cache", str(tmp_path / "c"))
    cli(*words).succeeded()
    assert " 0 bytes read" in cli(*words).succeeded().out
    cli("lake", "scan", str(lake), "--no-cache").succeeded()


@settings(max_examples=6, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.sampled_from("abcd"), st.lists(st.integers(0, 3), max_size=4), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_it_says_what_a_scan_without_it_says(tmp_path_factory: pytest.TempPathFactory, changes: list[Any]) -> None:
    """Tables are written, rewritten and deleted between scans."""
    folder = tmp_path_factory.mktemp("lake")
    lake, cache = folder / "lake", folder / "cache"
    for number, (name, values, csv) in enumerate(changes):
        write_csv(lake / f"{name}.csv", ["v", "w"], [[v, v] for v in values])
        if csv:
            write_csv(lake / f"{name}2.csv", ["v"], [[v] for v in values])
        else:
            (lake / f"{name}2.csv").unlink(missing_ok=True)
        os.utime(lake / f"{name}.csv", (LONG_AGO + number, LONG_AGO + number))
        assert said(scan(str(lake), cache=cache)) == said(scan(str(lake), no_cache=True))
