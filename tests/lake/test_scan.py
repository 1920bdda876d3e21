"""Containment between tables: every true edge, and no other, against an oracle in plain Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import nett
from nett.core.errors import Refused
from support.cli import nett as cli
from support.lakes import TRUTH, true_edges, write_csv, write_lake

scan: Callable[..., dict[str, Any]] = nett.lake.scan  # type: ignore[attr-defined]


def edges(told: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(e["child"], e["parent"]): e["containment"] for e in told["edges"]}


@pytest.mark.parametrize("semantics", ["set", "bag"])
@pytest.mark.parametrize("preset", ["none", "paper"])
def test_a_lake_with_known_truth(tmp_path: Path, semantics: str, preset: str) -> None:
    write_lake(tmp_path)
    told = scan(str(tmp_path), semantics=semantics, preset=preset)
    assert set(edges(told)) == {(child, parent) for child, parents in TRUTH.items() for parent in parents}
    assert {t["name"] for t in told["tables"]} == {
        str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()
    }
    stages = {s["name"]: s["pairs"] for s in told["stages"]}
    assert list(stages) == ["files", "schema", *(["rows"] if semantics == "bag" else []), "min-max", "sample", "verify"]
    assert sorted(stages.values(), reverse=True) == list(stages.values()) and stages["verify"] == len(told["edges"])
    assert all(e["verified"] and e["semantics"] == semantics for e in told["edges"]) and not told["warnings"]


def test_the_command_writes_json(tmp_path: Path) -> None:
    write_lake(tmp_path / "lake")
    done = cli("lake", "scan", str(tmp_path / "lake"), "--json", str(tmp_path / "out.json")).succeeded()
    told = json.loads((tmp_path / "out.json").read_text())
    assert {"tables", "edges", "stages"} <= set(told) and "16 containments" in done.out
    assert set(told["tables"][0]) >= {"name", "path", "rows", "columns", "bytes"}
    assert set(told["stages"][0]) == {"name", "pairs", "bytes_read", "seconds"}


CELLS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "i": (pa.int64(), st.sampled_from([None, 0, 1, 2, -1, 2**53, 2**53 + 1, -(2**63)])),
    "j": (pa.int8(), st.sampled_from([None, 0, 1, 2])),
    "f": (pa.float64(), st.sampled_from([None, 0.0, -0.0, 1.0, 0.1, float("nan"), float("inf"), 1e300])),
    "s": (pa.string(), st.sampled_from([None, "", "a", "A", "ä", "a'b", 'q"', "1", "\x00", "😀" * 40])),
    "b": (pa.bool_(), st.sampled_from([None, True, False])),
    "d": (pa.decimal128(9, 2), st.sampled_from([None, *map(Decimal, ["0.10", "1.00", "-1.25"])])),
    "t": (pa.timestamp("us"), st.none() | st.datetimes()),
    "x": (pa.binary(), st.sampled_from([None, b"", b"\x00\xff"])),
}
_TYPES = st.sampled_from(sorted(CELLS))


@st.composite
def lakes(draw: st.DrawFn) -> dict[str, pa.Table]:
    """A few tables of which some are made from others: rows taken, repeated, columns taken, a row changed."""
    names = draw(st.lists(_TYPES, min_size=1, max_size=4, unique=True))
    rows = draw(st.lists(st.tuples(*(CELLS[n][1] for n in names)), max_size=8))
    base = _table(names, rows)
    made = {"base": base}
    for number in range(draw(st.integers(1, 3))):
        source = made[draw(st.sampled_from(sorted(made)))]
        columns = draw(st.lists(st.sampled_from(source.column_names), min_size=1, unique=True))
        taken = draw(st.lists(st.integers(0, source.num_rows - 1), max_size=10)) if source.num_rows else []
        child = source.select(columns).take(pa.array(taken, pa.int64()))
        if draw(st.booleans()):
            row = [[draw(CELLS[n][1])] for n in columns]
            child = pa.concat_tables(
                [child, pa.table([pa.array(v, CELLS[n][0]) for v, n in zip(row, columns, strict=True)], columns)]
            )
        made[f"t{number}"] = child
    return made


def _table(names: list[str], rows: list[Any]) -> pa.Table:
    return pa.table([pa.array([r[i] for r in rows], CELLS[n][0]) for i, n in enumerate(names)], names)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables=lakes(), semantics=st.sampled_from(["set", "bag"]), least=st.sampled_from([1.0, 0.5]))
def test_every_true_edge_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, tables: dict[str, pa.Table], semantics: str, least: float
) -> None:
    folder = tmp_path_factory.mktemp("lake")
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    told = scan(str(folder), semantics=semantics, min_containment=least)
    wanted = true_edges({f"{n}.parquet": t for n, t in tables.items()}, semantics, least)
    assert edges(told) == pytest.approx(wanted)


def test_values_are_compared_across_types(tmp_path: Path) -> None:
    """1 = 1.0 in any number, decimals at any scale, text files by what they say."""
    pq.write_table(pa.table({"a": pa.array([1, 2], pa.int32())}), tmp_path / "int.parquet")
    pq.write_table(pa.table({"a": pa.array([1.0, 2.0, 2.5])}), tmp_path / "float.parquet")
    decimals = [Decimal(v) for v in ("1.00", "2.00", "2.50")]
    pq.write_table(pa.table({"a": pa.array(decimals, pa.decimal128(10, 2))}), tmp_path / "decimal.parquet")
    pq.write_table(
        pa.table({"a": pa.array([d.quantize(Decimal("0.1")) for d in decimals], pa.decimal128(5, 1))}),
        tmp_path / "scale.parquet",
    )
    write_csv(tmp_path / "text.csv", ["a"], [["1"], ["2.0"], ["2.50"]])
    write_csv(tmp_path / "padded.csv", ["a"], [["01"], ["2"]])
    all_three = {"float.parquet", "decimal.parquet", "scale.parquet", "text.csv"}
    wanted = {(c, p) for c in all_three for p in all_three if c != p} | {("int.parquet", p) for p in all_three}
    assert set(edges(scan(str(tmp_path)))) == wanted
    by_text = set(edges(scan(str(tmp_path), compare="text")))
    assert ("int.parquet", "float.parquet") in by_text and ("text.csv", "float.parquet") not in by_text


def test_hostile_names_never_reach_sql(tmp_path: Path) -> None:
    names = ["a'; DROP TABLE x; --", 'q"uote', "p0", "", "select", "A", "a", "x.y", "ä😀"]
    table = pa.table([[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12], [13, 14], [15, 16], [17, 18]], names)
    folder = tmp_path / "it's; a 'lake' \"here\""
    folder.mkdir()
    pq.write_table(table, folder / 'o\'ne; "x".parquet')
    pq.write_table(table.slice(0, 1), folder / "--two\n.parquet")
    write_csv(folder / "t'hree.csv", names[:3], [[1, 3, 5]])
    told = scan(str(folder))
    assert set(edges(told)) == {
        ("--two\n.parquet", "o'ne; \"x\".parquet"), ("t'hree.csv", "o'ne; \"x\".parquet"), ("t'hree.csv", "--two\n.parquet"),
    }  # fmt: skip


def test_nested_fields_are_flattened(tmp_path: Path) -> None:
    rows = [{"k": i, "in": {"x": i * 2, "y": {"z": f"t{i}"}}} for i in range(5)] + [{"k": 9, "in": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "deep.parquet")
    flat = [{"k": r["k"], "in.y.z": r["in"] and r["in"]["y"]["z"]} for r in rows[2:]]
    pq.write_table(pa.Table.from_pylist(flat), tmp_path / "flat.parquet")
    told = scan(str(tmp_path))
    assert set(edges(told)) == {("flat.parquet", "deep.parquet")}
    assert {t["name"]: t["columns"] for t in told["tables"]} == {"deep.parquet": 3, "flat.parquet": 2}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_lake(tmp_path)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "base.parquet").read_bytes()[:-20])
    (tmp_path / "magic.parquet").write_bytes(b"NOPE" + bytes(100))
    (tmp_path / "void.csv").write_bytes(b"")
    lying = bytearray((tmp_path / "base.parquet").read_bytes())
    lying[4:600] = bytes(596)  # its footer holds, its pages do not
    (tmp_path / "lying.parquet").write_bytes(lying)
    (tmp_path / "ragged.csv").write_text("id,name,value\n1,n1,0.25\n2,n2\n3,n3,0.75,9\n" * 50)
    told = scan(str(tmp_path))
    named = {w["table"]: w["warning"] for w in told["warnings"]}
    assert set(named) == {"cut.parquet", "magic.parquet", "void.csv", "lying.parquet", "ragged.csv"}
    assert set(edges(told)) == {(child, parent) for child, parents in TRUTH.items() for parent in parents}
    with pytest.raises(Refused, match="warnings in all"):
        scan(str(tmp_path), strict=True)
    assert "warning: cut.parquet" in cli("lake", "scan", str(tmp_path)).succeeded().out
    cli("lake", "scan", str(tmp_path), "--strict").failed(3)


@example(rows=200)
@given(rows=st.integers(1, 300))
@settings(max_examples=5, deadline=None)
def test_parts_of_one_output_are_one_table(tmp_path_factory: pytest.TempPathFactory, rows: int) -> None:
    folder = tmp_path_factory.mktemp("lake")
    table = pa.table({"a": list(range(rows))})
    (folder / "out").mkdir()
    for i in range(3):
        pq.write_table(
            table.slice(i * rows // 3, (i + 1) * rows // 3 - i * rows // 3), folder / "out" / f"part-0000{i}.parquet"
        )
    (folder / "out" / "_SUCCESS").touch()
    pq.write_table(table.slice(0, max(1, rows // 2)), folder / "half.parquet")
    told = scan(str(folder))
    assert {t["name"]: t["rows"] for t in told["tables"]} == {"out": rows, "half.parquet": max(1, rows // 2)}
    assert ("half.parquet", "out") in edges(told)


def test_a_scan_of_models_points_to_the_lake(tmp_path: Path) -> None:
    write_lake(tmp_path)
    assert f"It holds 9 files of tables: nett lake scan {tmp_path}" in cli("scan", str(tmp_path)).failed(3).err
