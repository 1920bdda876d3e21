"""``--engine spark`` says what DuckDB says, on Parquet and CSV, in local mode."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nett
from nett.lake.spark import Spark, _short
from support.cli import nett as cli
from support.lakes import TRUTH, write_csv, write_lake

scan: Callable[..., dict[str, Any]] = nett.lake.scan  # type: ignore[attr-defined]
if os.environ.get("CI") != "true":
    pytest.importorskip("pyspark")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java", allow_module_level=True)


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    """One Java process for all tests of the file; the engine takes it as it is, with its own settings."""
    from pyspark.sql import SparkSession

    from nett.lake.spark import SETTINGS

    builder: Any = SparkSession.builder.master("local[1]")
    quick = {  # a few rows are not worth compiling for
        "spark.sql.shuffle.partitions": "1", "spark.sql.adaptive.enabled": "false",
        "spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    }  # fmt: skip
    for name, value in (SETTINGS | quick).items():
        builder = builder.config(name, value)
    made = (
        builder.config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1").getOrCreate()
    )
    yield made
    made.stop()


def told(folder: Path, engine: str, **options: Any) -> dict[str, Any]:
    """What a scan says, without its seconds and lines."""
    found = scan(str(folder), engine=engine, **options)
    for stage in found["stages"]:
        del stage["seconds"]
    return {k: v for k, v in found.items() if k != "say"}


@pytest.mark.timeout(900)  # Java on a busy machine
@pytest.mark.usefixtures("session")
@pytest.mark.slow  # the lake of kinds below is compared by default
@pytest.mark.parametrize("semantics", ["set", "bag"])
def test_spark_says_the_same(tmp_path: Path, semantics: str) -> None:
    write_lake(tmp_path)
    by_spark = told(tmp_path, "spark", semantics=semantics)
    assert by_spark == told(tmp_path, "duckdb", semantics=semantics)
    assert {(e["child"], e["parent"]) for e in by_spark["edges"]} == {(c, p) for c, some in TRUTH.items() for p in some}


@pytest.mark.timeout(900)  # Java on a busy machine
@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    ("semantics", "least"),
    [
        ("set", 1.0),
        *(pytest.param(s, n, marks=pytest.mark.slow) for s, n in [("bag", 1.0), ("set", 0.5), ("bag", 0.5)]),
    ],
)
def test_values_of_every_kind(tmp_path: Path, semantics: str, least: float) -> None:
    """Types across engines: NULL, NaN, both zeros, scales, zones, text of numbers, nested fields, repeated rows."""
    floats = [0.0, -0.0, float("nan"), None, 1e-05, 1e20, 2.5, 1.0]
    pq.write_table(pa.table({"f": floats, "k": [i % 3 for i in range(8)]}), tmp_path / "floats.parquet")
    pq.write_table(pa.table({"f": [0.0, float("nan"), None, 1e-05], "k": [1, 2, 0, 1]}), tmp_path / "some.parquet")
    write_csv(tmp_path / "floats.csv", ["f", "k"], [["1e-05", "1"], ["x", "1"], ["2.5", "0"]])
    write_csv(tmp_path / "two.csv", ["f", "k"], [["2.50", "0"]])
    pq.write_table(pa.table({"f": [1e-05, 2.5], "k": [1, 0]}), tmp_path / "two.parquet")
    decimals = [Decimal("0.00000012"), Decimal("0.00000000"), Decimal("5.10000000")]
    pq.write_table(pa.table({"d": pa.array(decimals, pa.decimal128(18, 8))}), tmp_path / "fine.parquet")
    pq.write_table(
        pa.table({"d": pa.array([Decimal("5.1"), Decimal("0.0")], pa.decimal128(5, 1))}), tmp_path / "coarse.parquet"
    )
    write_csv(tmp_path / "lines.csv", ["a", "b"], [['x "y"\nz', "1"], ["u,v", ""], ["", "2"]])
    write_csv(tmp_path / "line.csv", ["a"], [['x "y"\nz'], [""]])
    times = pa.array([0, 1_500_000, None], pa.timestamp("us"))
    pq.write_table(pa.table({"t": times, "z": times.cast(pa.timestamp("us", "UTC"))}), tmp_path / "times.parquet")
    pq.write_table(pa.table({"t": times.slice(1)}), tmp_path / "time.parquet")
    pq.write_table(pa.table({"z": times.slice(0, 1)}), tmp_path / "naive.parquet")
    nested = [{"in": {"x": 1, "y": "a"}, "n": None}, {"in": None, "n": 2}, {"in": {"x": 1, "y": "a"}, "n": None}]
    pq.write_table(pa.Table.from_pylist(nested), tmp_path / "deep.parquet")
    pq.write_table(pa.table({"in.x": pa.array([1, None, None]), "in.y": ["a", None, None]}), tmp_path / "flat.parquet")
    options = {"semantics": semantics, "min_containment": least}
    assert told(tmp_path, "spark", **options) == told(tmp_path, "duckdb", **options)


@pytest.mark.timeout(900)  # Java on a busy machine
@pytest.mark.usefixtures("session")
def test_hostile_names_and_broken_files(tmp_path: Path) -> None:
    folder = tmp_path / "it's {a} [lake]"
    folder.mkdir()
    table = pa.table([[1, 2], [3, 4], [5, 6]], ["a'; DROP", 'q"u`o.te', "A"])
    pq.write_table(table, folder / "o'ne*.parquet")
    pq.write_table(table.slice(0, 1), folder / "two?.parquet")
    (folder / "ragged.csv").write_text("a,b\n" + "1,2\n" * 30_000 + "1,2,3\n")
    write_csv(folder / "fine.csv", ["a", "b"], [[1, 2]])
    by_spark, by_duck = told(folder, "spark"), told(folder, "duckdb")
    assert by_spark["edges"] == by_duck["edges"] and len(by_spark["edges"]) == 1
    assert [(w["table"], w["warning"]) for w in by_spark["warnings"]] == [("ragged.csv", "ragged")]
    assert [(w["table"], w["warning"]) for w in by_duck["warnings"]] == [("ragged.csv", "ragged")]


@pytest.mark.slow
def test_a_master_that_is_not_there(tmp_path: Path) -> None:
    write_lake(tmp_path)
    said = cli("lake", "scan", str(tmp_path), "--engine", "spark", "--master", "nonsense[2]").failed(3)
    assert "Spark does not start" in said.err


@pytest.mark.timeout(900)
def test_a_view_for_spark_has_the_rows_of_the_table(tmp_path: Path, session: Any) -> None:
    """What ``nett lake apply --view spark`` leaves, run on Spark: a filter, a projection, and a list with NULL."""
    lake = tmp_path / "lake"
    write_lake(lake)
    rows = {name: pq.read_table(lake / f"{name}.parquet").to_pylist() for name in ("filtered", "projected")}
    base = pq.read_table(lake / "base.parquet")
    listed = [r for r in base.to_pylist() if r["name"] in ("n1", "n4", None)]
    pq.write_table(pa.Table.from_pylist(listed, base.schema), lake / "listed.parquet")
    shutil.rmtree(lake / "text")
    nett.lake.plan(str(lake), out=tmp_path / "plan.json", no_cache=True)  # type: ignore[attr-defined]
    nett.lake.apply(str(tmp_path / "plan.json"), yes=True, view="spark")  # type: ignore[attr-defined]
    seen = []
    for name, wanted in {**rows, "listed": listed}.items():
        statement = lake / f"{name}.parquet.spark.sql"
        if statement.exists():
            session.sql(statement.read_text().rstrip().rstrip(";"))
            found = [r.asDict() for r in session.sql(f"SELECT * FROM `{name}.parquet`").collect()]
            assert sorted(found, key=str) == sorted(wanted, key=str), name
            seen.append(name)
    assert {"filtered", "listed"} <= set(seen)


@pytest.mark.timeout(900)
def test_no_join_sends_a_whole_table_that_looks_small(session: Any) -> None:
    """Of many equal rows the file is small and the table is not, and Java has no room for it beside what it holds."""
    engine = Spark()
    child, parent = session.range(50).toDF("c0"), session.range(100).toDF("k0")
    joined = child.join(parent, child.c0.eqNullSafe(parent.k0), "left_anti")
    assert "Broadcast" not in joined._jdf.queryExecution().executedPlan().toString()
    engine.close()


def test_of_an_error_the_telling_line_is_shown() -> None:
    java = "An error occurred while calling o1.collect.\n: org.apache.spark.SparkException: Not enough memory.\n\tat x"
    assert _short(RuntimeError(java)) == "org.apache.spark.SparkException: Not enough memory."
    assert _short(RuntimeError(f"{java}\n[A.B] one\n[CAST_INVALID] two\n")) == "[CAST_INVALID] two"
    assert _short(RuntimeError("plain\nmore")) == "plain" and _short(RuntimeError()) == "RuntimeError"
