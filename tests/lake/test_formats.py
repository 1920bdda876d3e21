"""Tables of every format hold the rows that they hold: read right, grouped right, or named as what they are not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nett
from support.lakes import true_edges, write_csv

scan: Any = nett.lake.scan  # type: ignore[attr-defined]


def edges(folder: Path, **options: Any) -> set[tuple[str, str]]:
    told = scan(str(folder), **options)
    assert not told["warnings"]
    return {(e["child"], e["parent"]) for e in told["edges"]}


def warned(folder: Path) -> dict[str, str]:
    return {w["table"]: w["warning"] for w in scan(str(folder))["warnings"]}


def tables(folder: Path, **options: Any) -> dict[str, tuple[int, int]]:
    return {t["name"]: (t["rows"], t["columns"]) for t in scan(str(folder), **options)["tables"]}


BASE = pa.table({
    "id": pa.array(range(60), pa.int64()),
    "s": [f"ä{i % 7}" if i % 5 else None for i in range(60)],
    "f": [i / 4 for i in range(60)],
    "in": [{"x": i, "y": {"z": f"t{i}"}} for i in range(60)],
    "l": [[i, i + 1] for i in range(60)],
})  # fmt: skip


def write_arrow(path: Path, table: pa.Table, *, stream: bool = False, compression: str | None = None) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=16)


def write_jsonl(path: Path, rows: list[Any], end: str = "\n") -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def test_one_table_in_every_format_is_one_table(tmp_path: Path) -> None:
    pq.write_table(BASE, tmp_path / "a.parquet")
    write_arrow(tmp_path / "a.arrow", BASE)
    write_arrow(tmp_path / "b.feather", BASE, compression="zstd")
    write_arrow(tmp_path / "c.ipc", BASE, stream=True)
    write_jsonl(tmp_path / "a.jsonl", BASE.to_pylist())
    write_jsonl(tmp_path / "b.ndjson.gz", BASE.to_pylist(), "\r\n")
    names = {"a.parquet", "a.arrow", "b.feather", "c.ipc", "a.jsonl", "b.ndjson.gz"}
    flat = BASE.flatten().flatten().drop_columns("l").to_pylist()
    write_csv(tmp_path / "few.csv", list(flat[0]), [list(r.values()) for r in flat[:20]])
    for semantics in ("set", "bag"):
        wanted = {(c, p) for c in names for p in names if c != p} | {("few.csv", p) for p in names}
        assert edges(tmp_path, semantics=semantics) == wanted
    assert set(tables(tmp_path).values()) == {(60, 6), (20, 5)}


def test_arrow_types_that_engines_may_not_read(tmp_path: Path) -> None:
    values = ["a", "b", None, "a"]
    plain = pa.table({"k": values, "h": pa.array([1.5, None, 2, 3], pa.float32())})
    odd = pa.table({
        "k": pa.array(values).dictionary_encode(), "h": pa.array([1.5, None, 2, 3], pa.float16()),
    })  # fmt: skip
    write_arrow(tmp_path / "odd.arrow", odd)
    write_arrow(tmp_path / "odd.ipc", odd, stream=True)
    pq.write_table(plain, tmp_path / "plain.parquet")
    names = ["odd.arrow", "odd.ipc", "plain.parquet"]
    assert edges(tmp_path) == {(c, p) for c in names for p in names if c != p}
    big = pa.array([2**64 - 1, 5], pa.uint64())
    pq.write_table(pa.table({"u": big}), tmp_path / "u.parquet")
    write_arrow(tmp_path / "u.arrow", pa.table({"u": big, "n": pa.nulls(2)}))
    assert ("u.parquet", "u.arrow") in edges(tmp_path)


def test_arrow_that_does_not_hold(tmp_path: Path) -> None:
    write_arrow(tmp_path / "good.arrow", BASE)
    whole = (tmp_path / "good.arrow").read_bytes()
    (tmp_path / "cut.arrow").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "old.feather").write_bytes(b"FEA1" + bytes(40) + b"FEA1")
    (tmp_path / "void.ipc").write_bytes(b"")
    write_arrow(tmp_path / "stream.ipc", BASE, stream=True)
    stream = (tmp_path / "stream.ipc").read_bytes()
    (tmp_path / "torn.ipc").write_bytes(stream[: len(stream) // 2])
    assert warned(tmp_path) == dict.fromkeys(["cut.arrow", "old.feather", "void.ipc", "torn.ipc"], "unreadable")


def test_json_types_come_from_all_values(tmp_path: Path) -> None:
    late = [{"a": i, "b": str(i)} for i in range(3000)]
    write_jsonl(
        tmp_path / "late.jsonl", [*late, {"a": 2.5, "b": "x", "c": {"d": True, "A/~": None}, "C": "2020-01-01"}]
    )
    write_jsonl(tmp_path / "few.jsonl", [{"a": 7.0, "b": "7"}, {"b": "x", "a": 2.5}])
    write_jsonl(tmp_path / "odd.jsonl", [{"a": 7, "b": 7}])  # as text the same
    write_jsonl(tmp_path / "nested.jsonl", [{"c.d": True, "C": "2020-01-01", "c": {"A/~": None}}])
    write_jsonl(
        tmp_path / "mixed.jsonl", [{"a": 1}, {"a": "1"}, {"a": [1, {"k": None}]}, {"a": -5}, {"a": 2**64 - 1}, {}]
    )
    big = [{"u": 2**64 - 1}, {"u": 5}]
    write_jsonl(tmp_path / "big.jsonl", big)
    pq.write_table(pa.table({"u": pa.array([2**64 - 1, 5, 0], pa.uint64())}), tmp_path / "big.parquet")
    assert edges(tmp_path) == {
        ("few.jsonl", "late.jsonl"), ("odd.jsonl", "late.jsonl"), ("odd.jsonl", "few.jsonl"),
        ("nested.jsonl", "late.jsonl"), ("big.jsonl", "big.parquet"),
    }  # fmt: skip
    assert tables(tmp_path)["late.jsonl"] == (3001, 5) and tables(tmp_path)["mixed.jsonl"] == (6, 1)


def test_lines_that_are_broken_are_named(tmp_path: Path) -> None:
    for name, text in {
        "cut.jsonl": b'{"a": 1}\n{"a": 2\n{"a": 3}\n', "list.jsonl": b"[1]\n", "latin.jsonl": '{"a":"é"}'.encode("latin-1"),
        "two.jsonl": b'{"a": 1} {"a": 2}\n',
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(text)
    (tmp_path / "void.jsonl").write_bytes(b"")
    (tmp_path / "gz.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:30])
    (tmp_path / "none.jsonl").write_bytes(b"{}\n{}\n")
    told = warned(tmp_path)
    assert told == {
        "cut.jsonl": "broken-line", "list.jsonl": "broken-line", "latin.jsonl": "broken-line", "two.jsonl": "broken-line",
        "void.jsonl": "unreadable", "gz.jsonl.gz": "unreadable", "none.jsonl": "no-columns",
    }  # fmt: skip
    why = next(w["why"] for w in scan(str(tmp_path))["warnings"] if w["table"] == "cut.jsonl")
    assert "line" in why


ROWS = [["1", "x y", "é"], ["2", "line\none", ""], ["3", 'said "so", twice', "b"], ["4", "p|q;r\tz", "c"]] * 3


@pytest.mark.parametrize("separator", [",", ";", "|", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_csv_dialects_and_encodings(tmp_path: Path, separator: str, encoding: str) -> None:
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if set(cell) & {separator, '"', "\n"} else cell

    text = "".join(separator.join(map(quoted, row)) + "\n" for row in [["a", "b", "ä"], *ROWS])
    (tmp_path / "odd.csv").write_bytes(text.encode(encoding))
    (tmp_path / "zip.csv.gz").write_bytes(gzip.compress(text.encode(encoding)))
    cells: list[list[Any]] = [[int(r[0]), r[1], r[2] or None] for r in ROWS]
    pq.write_table(pa.table([list(c) for c in zip(*cells, strict=True)], ["a", "b", "ä"]), tmp_path / "a.parquet")
    told = scan(str(tmp_path), semantics="bag")
    names = ["odd.csv", "zip.csv.gz", "a.parquet"]
    assert {(e["child"], e["parent"]) for e in told["edges"]} == {(c, p) for c in names for p in names if c != p}
    assert {w["warning"] for w in told["warnings"]} == ({"encoding"} if encoding == "latin-1" else set())


def test_csv_shapes(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("a\nx\ny\nx\n")
    (tmp_path / "header.csv").write_text("a,b,c\n")
    (tmp_path / "bare.csv").write_text("1,2.5\n3,4.5\n5,6.5\n")
    (tmp_path / "bare2.csv").write_text("3,4.5\n")
    (tmp_path / "crlf.csv").write_bytes(b"a,b\r\nx,1\r\ny,2\r\n")
    late = "".join(f"{i},plain\n" for i in range(5000)) + '5000,"one, ""two"""\n'
    (tmp_path / "late.csv").write_text("k,v\n" + late)
    (tmp_path / "late2.csv").write_text('v;k\n"one, ""two""";5000\n')
    assert tables(tmp_path) == {
        "one.csv": (3, 1), "header.csv": (0, 3), "bare.csv": (3, 2), "bare2.csv": (1, 2), "crlf.csv": (2, 2),
        "late.csv": (5001, 2), "late2.csv": (1, 2),
    }  # fmt: skip
    assert edges(tmp_path) == {("one.csv", "crlf.csv"), ("bare2.csv", "bare.csv"), ("late2.csv", "late.csv")}


def write_hive(folder: Path, table: pa.Table, keys: list[str], kind: str) -> None:
    """As Hive and Spark write it: quoted folders, NULL by its name, the keys not in the files."""
    from urllib.parse import quote

    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        groups.setdefault(tuple(row[k] for k in keys), []).append({c: v for c, v in row.items() if c not in keys})
    for values, rows in groups.items():
        told = ["__HIVE_DEFAULT_PARTITION__" if v is None else quote(str(v), safe=" ") for v in values]
        place = folder.joinpath(*(f"{quote(k)}={v}" for k, v in zip(keys, told, strict=True)))
        place.mkdir(parents=True)
        rest = pa.Table.from_pylist(rows, schema=table.drop_columns(keys).schema)
        if kind == "csv":
            write_csv(place / "part-0.csv", rest.column_names, [list(r.values()) for r in rows])
        elif kind == "parquet":
            pq.write_table(rest, place / "part-0.parquet")
        elif kind == "arrow":
            write_arrow(place / "part-0.arrow", rest)
        else:
            write_jsonl(place / "part-0.jsonl", rows)


KEYS = {
    "integer": (pa.int64(), st.sampled_from([None, 0, 1, -5, 12])),
    "text": (pa.string(), st.sampled_from([None, "a", "a b", "x/y", "é=%", "it's", "01", "1"])),
}


@st.composite
def hives(draw: st.DrawFn) -> tuple[pa.Table, pa.Table]:
    kind = draw(st.sampled_from(sorted(KEYS)))
    type, values = KEYS[kind]
    rows = draw(st.lists(st.tuples(values, st.integers(0, 3)), min_size=1, max_size=8))
    made = pa.table([pa.array([r[0] for r in rows], type), pa.array([r[1] for r in rows], pa.int64())], ["k'=", "v"])
    taken = draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    child = made.take(taken)
    if draw(st.booleans()):
        child = pa.concat_tables(
            [child, pa.table([pa.array([draw(values)], type), pa.array([1], pa.int64())], ["k'=", "v"])]
        )
    return made, child


@settings(max_examples=25, deadline=None)
@given(
    pair=hives(), semantics=st.sampled_from(["set", "bag"]), kind=st.sampled_from(["parquet", "csv", "jsonl", "arrow"])
)
def test_partitions_are_columns(
    tmp_path_factory: pytest.TempPathFactory, pair: tuple[pa.Table, pa.Table], semantics: str, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("lake")
    whole, child = pair
    write_hive(folder / "whole", whole, ["k'="], kind)
    write_hive(folder / "child", child, ["k'="], "parquet")
    pq.write_table(whole, folder / "flat.parquet")
    wanted = true_edges({"whole": whole, "child": child, "flat.parquet": whole}, semantics)
    assert edges(folder, semantics=semantics) == set(wanted)
    assert tables(folder)["whole"] == (whole.num_rows, 2)


def test_partitions_of_mixed_values_and_below_the_lake_itself(tmp_path: Path) -> None:
    table = pa.table({"y": ["1", "x", "007", None], "m": pa.array([1, 2, 1, 2], pa.int64()), "v": [1, 2, 3, 4]})
    write_hive(tmp_path, table, ["y", "m"], "parquet")
    pq.write_table(table.slice(1, 2), tmp_path / "few.parquet")
    assert edges(tmp_path) == {("few.parquet", ".")} and tables(tmp_path)["."] == (4, 3)


def test_equal_files_of_other_partitions_are_not_equal(tmp_path: Path) -> None:
    for name, day in (("a", "1"), ("b", "2"), ("c", "1")):
        (tmp_path / name / f"day={day}").mkdir(parents=True)
        pq.write_table(pa.table({"v": [1, 2]}), tmp_path / name / f"day={day}" / "x.parquet")
    assert edges(tmp_path) == {("a", "c"), ("c", "a")}


def test_partitions_prune_without_reading(tmp_path: Path) -> None:
    for name, days in (("a", range(4)), ("b", range(3, 6))):
        write_hive(tmp_path / name, pa.table({"day": list(days), "v": [1] * len(days)}), ["day"], "parquet")
    told = scan(str(tmp_path))
    assert [s["pairs"] for s in told["stages"]] == [2, 2, 0, 0, 0] and sum(s["bytes_read"] for s in told["stages"]) == 0


@pytest.mark.parametrize("kind", ["parquet", "csv", "arrow"])
def test_parts_whose_columns_differ(tmp_path: Path, kind: str) -> None:
    def write(name: str, table: pa.Table) -> None:
        path = tmp_path / f"{name}.{kind}"
        path.parent.mkdir(exist_ok=True)
        if kind == "csv":
            write_csv(path, table.column_names, [list(r.values()) for r in table.to_pylist()])
        elif kind == "arrow":
            write_arrow(path, table)
        else:
            pq.write_table(table, path)

    new = pa.table({"b": ["x", "y"], "a": pa.array([3, 4], pa.int64()), "c": [0.5, 1.5]})
    write("grown/part-00000", pa.table({"a": pa.array([1, 2], pa.int32()), "b": ["u", "v"]}))
    write("grown/part-00001", new)
    write("apart/part-00000", new.select(["a", "b"]))
    write("apart/part-00001", new.select(["a", "c"]))
    whole = pa.table({"a": [1, 2, 3, 4], "b": ["u", "v", "x", "y"], "c": [None, None, 0.5, 1.5]})
    pq.write_table(whole, tmp_path / "whole.parquet")
    told = scan(str(tmp_path))
    assert {w["table"]: w["warning"] for w in told["warnings"]} == {"apart": "mixed-schema"}
    assert {(e["child"], e["parent"]) for e in told["edges"]} == {
        ("grown", "whole.parquet"),
        ("whole.parquet", "grown"),
    }


def test_parts_whose_types_differ_are_named(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t" / "part-0.parquet")
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "t" / "part-1.parquet")
    for key in ("k=1", "j=2"):
        (tmp_path / "h" / key).mkdir(parents=True)
        pq.write_table(pa.table({"a": [1]}), tmp_path / "h" / key / "x.parquet")
    assert warned(tmp_path) == {"t": "mixed-schema", "h": "mixed-partitions"}


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n3\n4,5,6\n", "a;b\n1;2\n3\n4;5;6\n", "a\n1\n2\n3,4\n"], ids=["comma", "semicolon", "one column"]
)
def test_rows_of_several_widths_are_not_taken_for_a_preamble(tmp_path: Path, text: str) -> None:
    (tmp_path / "ragged.csv").write_text(text)
    told = scan(str(tmp_path), no_cache=True)
    assert [(w["table"], w["warning"]) for w in told["warnings"]] == [("ragged.csv", "ragged")] and not told["tables"]


def test_lines_above_the_header_are_passed_over_and_said(tmp_path: Path) -> None:
    (tmp_path / "report.csv").write_text("report of 2024\n\na;b\n1;2\n3;4\n5;6\n")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n5,6\n")
    told = scan(str(tmp_path), no_cache=True)
    assert [(e["child"], e["parent"]) for e in told["edges"]] == [("rows.csv", "report.csv")]
    assert [(w["table"], w["warning"]) for w in told["warnings"]] == [("report.csv", "skipped-lines")]
