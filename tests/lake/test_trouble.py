"""Files that are odd, broken or not for this user: named, and everything else is compared as if they were not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nett
from nett.core.errors import Refused
from support.cli import nett as cli
from support.forge import forge
from support.lakes import TRUTH, true_edges, write_lake

scan: Any = nett.lake.scan  # type: ignore[attr-defined]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


MODULES = [
    "nett.lake.scan", "nett.lake.scanning", "nett.lake.duck", "duckdb", "pyarrow.parquet", "pyarrow.dataset", "numpy",
    *(f"nett.lake.formats.{f}" for f in ("parquet", "delimited", "jsonl", "arrow", "delta", "iceberg")),
]  # fmt: skip


def edges(told: dict[str, Any]) -> set[tuple[str, str]]:
    return {(e["child"], e["parent"]) for e in told["edges"]}


def warned(told: dict[str, Any]) -> dict[str, str]:
    return {w["table"]: w["warning"] for w in told["warnings"]}


@needs_root
def test_what_another_user_may_not_read_is_named(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    write_lake(lake)
    for name in ("shut.parquet", "shut.csv", "shut.jsonl", "shut.arrow"):
        (lake / name).write_bytes(b'{"a": 1}\n' if name.endswith("l") else b"a,b\n1,2\n")
        (lake / name).chmod(0o600)
    (lake / "locked").mkdir(mode=0o700)
    pq.write_table(pa.table({"x": [1]}), lake / "locked" / "x.parquet")
    for folder in (lake, *lake.parents):
        if folder in (Path("/tmp"), folder.parent):
            break
        folder.chmod(folder.stat().st_mode | 0o755)
    words = ["lake", "scan", str(lake), "--no-cache"]
    code, out, err = forge().run("support.work:unprivileged", words=words, modules=MODULES)
    assert code == 0, err
    assert "16 containments" in out
    for name in ("shut.parquet", "shut.csv", "shut.jsonl", "shut.arrow", "locked"):
        assert f"warning: {name}: unreadable" in out, out
    code, _, err = forge().run("support.work:unprivileged", words=[*words, "--strict"], modules=MODULES)
    assert code == 3 and "5 warnings in all" in err
    code, _, err = forge().run(
        "support.work:unprivileged", words=["lake", "scan", str(lake / "locked"), "--no-cache"], modules=MODULES
    )
    assert code == 3 and "ermission" in err


def test_strict_says_the_first_and_how_many(tmp_path: Path) -> None:
    write_lake(tmp_path)
    scan(str(tmp_path), strict=True)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    (tmp_path / "void.csv").write_bytes(b"")
    with pytest.raises(Refused, match=r"2 warnings in all"):
        scan(str(tmp_path), strict=True)
    page, told = tmp_path.parent / "strict.html", tmp_path.parent / "strict.json"
    done = cli("lake", "scan", str(tmp_path), "--strict", "--json", str(told), "--html", str(page))
    done.failed(3)
    assert {w["table"] for w in json.loads(told.read_text())["warnings"]} == {"cut.parquet", "void.csv"}
    assert page.exists()


def test_no_columns_and_none_that_count(tmp_path: Path) -> None:
    write_lake(tmp_path)
    pq.write_table(pa.table({}), tmp_path / "bare.parquet")
    with pa.ipc.new_file(str(tmp_path / "bare.arrow"), pa.schema([])) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([], []))
    told = scan(str(tmp_path))
    assert warned(told) == {"bare.parquet": "no-columns", "bare.arrow": "no-columns"}
    assert edges(told) == {(child, parent) for child, parents in TRUTH.items() for parent in parents}
    assert edges(scan(str(tmp_path), ignore="*")) == set()


NAMES = ["a", "A", "ä", "Ä", "", " ", "a ", "p0", "k0", "n", "h", "file_index", "rowid", "c.a", "a\x00b"]


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True),
    rows=st.lists(st.tuples(*[st.integers(0, 2)] * 5), min_size=1, max_size=5),
    taken=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    kinds=st.tuples(st.sampled_from(["parquet", "arrow"]), st.sampled_from(["parquet", "arrow"])),
    semantics=st.sampled_from(["set", "bag"]),
)
def test_names_that_clash_by_case_or_with_ours(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], rows: Any, taken: list[int], kinds: Any, semantics: str
) -> None:
    folder = tmp_path_factory.mktemp("lake")
    parent = pa.table([[r[i] for r in rows] for i in range(len(names))], names)
    child = parent.select(names[: 1 + taken[0] % len(names)]).take([t % len(rows) for t in taken])
    made = {f"child.{kinds[0]}": child, f"parent.{kinds[1]}": parent}
    for name, table in made.items():
        if name.endswith("parquet"):
            pq.write_table(table, folder / name)
        else:
            with pa.ipc.new_file(str(folder / name), table.schema) as writer:
                writer.write_table(table)
    told = scan(str(folder), semantics=semantics)
    assert not told["warnings"] and edges(told) == set(true_edges(made, semantics))


def test_columns_of_one_name_the_first_counts(tmp_path: Path) -> None:
    twice = pa.table([[1, 2], [3, 4], [5, 6]], ["a", "b", "a"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pa.ipc.new_file(str(tmp_path / "twice.arrow"), twice.schema) as writer:
        writer.write_table(twice)
    pq.write_table(pa.table({"a": [2], "b": [4]}), tmp_path / "first.parquet")
    pq.write_table(pa.table({"a": [6], "b": [4]}), tmp_path / "second.parquet")
    told = scan(str(tmp_path))
    both = {("twice.parquet", "twice.arrow"), ("twice.arrow", "twice.parquet")}
    assert not told["warnings"]
    assert edges(told) == both | {("first.parquet", "twice.parquet"), ("first.parquet", "twice.arrow")}


def test_nested_names_that_clash(tmp_path: Path) -> None:
    """DuckDB finds fields of a struct whatever their case; here they are two."""
    write_lake(tmp_path)
    clash = pa.array([{"x": 1, "X": 2}, {"x": 3, "X": 4}])
    pq.write_table(pa.table({"s": clash, "k": [1, 2]}), tmp_path / "clash.parquet")
    pq.write_table(pa.table({"s.x": [1], "s.X": [2], "k": [1]}), tmp_path / "clash_in.parquet")
    pq.write_table(pa.table({"s.x": [2], "s.X": [1], "k": [1]}), tmp_path / "clash_out.parquet")
    told = scan(str(tmp_path))
    known = {(child, parent) for child, parents in TRUTH.items() for parent in parents}
    clashing = edges(told) - known
    assert known <= edges(told)
    assert clashing == {("clash_in.parquet", "clash.parquet")}
    assert not told["warnings"]


def test_ragged_files(tmp_path: Path) -> None:
    write_lake(tmp_path)
    plain = "".join(f"{i},n{i},0.5\n" for i in range(6000))
    (tmp_path / "late.csv").write_text("id,name,value\n" + plain + "7,n7\n")
    (tmp_path / "wide.csv").write_text("id,name,value\n" + plain + "7,n7,1,2\n")
    (tmp_path / "open.csv").write_text("id,name,value\n" + plain + '7,"n7,1\n')
    (tmp_path / "nul.csv").write_bytes(b"id,name,value\n1,\x00,0.5\n")
    told = scan(str(tmp_path))
    assert {k for k, v in warned(told).items() if v == "ragged"} >= {"late.csv", "wide.csv", "open.csv"}
    known = {(child, parent) for child, parents in TRUTH.items() for parent in parents}
    assert known <= edges(told) and {t for e in edges(told) - known for t in e} <= {"nul.csv", "empty.parquet"}


def test_a_whole_float_that_no_double_holds(tmp_path: Path) -> None:
    (tmp_path / "big.csv").write_text("a\n1e999\n2\n")
    (tmp_path / "small.csv").write_text("a\n2\n")
    pq.write_table(pa.table({"a": pa.array([2**64 - 1, 2], pa.uint64())}), tmp_path / "u.parquet")
    assert edges(scan(str(tmp_path))) == {("small.csv", "big.csv"), ("small.csv", "u.parquet")}


def test_wrong_words_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    write_lake(tmp_path / "lake")
    lake = str(tmp_path / "lake")
    cli("lake", "scan", lake, "--memory-limit", "512XB").failed(2, "'512XB' is not a size", "500MB")
    cli("lake", "plan", lake, "--memory-limit", "much").failed(2, "'much' is not a size")
    for option in ("--json", "--html"):
        said = cli("lake", "scan", lake, option, str(tmp_path / "none" / "file")).failed(3)
        assert f"{tmp_path / 'none'}: there is no such folder to write in" in said.err
