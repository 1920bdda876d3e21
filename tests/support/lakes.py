"""Small lakes with known truth, and an oracle that compares tables row by row in plain Python."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = Sequence[Sequence[Any]]


def write_lake(folder: Path) -> list[str]:
    """Nine tables: a base, a filter of it, a projection, one with a row too many, a copy, the same in CSV, one that
    shares its columns only, an empty one, and a stranger."""
    folder.mkdir(parents=True, exist_ok=True)
    base = pa.table({
        "id": pa.array(range(100), pa.int64()),
        "name": [f"n{i % 7}" if i % 5 else None for i in range(100)],
        "value": [i / 4 for i in range(100)],
    })  # fmt: skip
    tables = {
        "base": base,
        "filtered": base.slice(20, 30),
        "projected": base.select(["name", "value"]).slice(0, 50),
        "one_more": pa.concat_tables([base.slice(0, 10), pa.table({"id": [5], "name": ["n9"], "value": [1.25]})]),
        "other_rows": base.slice(0, 40).set_column(2, "value", pa.array([i / 8 + 1 for i in range(40)])),
        "empty": base.slice(0, 0),
        "stranger": pa.table({"x": [1, 2, 3]}),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=32)
    (folder / "copies").mkdir(exist_ok=True)
    (folder / "copies" / "base.parquet").write_bytes((folder / "base.parquet").read_bytes())
    write_csv(
        folder / "text" / "filtered.csv", base.column_names, [list(r.values()) for r in tables["filtered"].to_pylist()]
    )
    return [str(folder)]


TRUTH = {  # child -> its parents, under both semantics
    "filtered.parquet": {"base.parquet", "copies/base.parquet", "text/filtered.csv"},
    "text/filtered.csv": {"base.parquet", "copies/base.parquet", "filtered.parquet"},
    "projected.parquet": {"base.parquet", "copies/base.parquet"},
    "base.parquet": {"copies/base.parquet"},
    "copies/base.parquet": {"base.parquet"},
    "empty.parquet": {
        "base.parquet", "copies/base.parquet", "filtered.parquet", "one_more.parquet", "other_rows.parquet",
        "text/filtered.csv",
    },
}  # fmt: skip


def write_csv(path: Path, names: Sequence[str], rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([["" if v is None else v for v in row] for row in rows])
    return path


def value(cell: Any) -> Any:
    """A cell so that equal ones are equal in Python: NaN equals NaN, and True is no 1."""
    if isinstance(cell, float) and math.isnan(cell):
        return "NaN"
    if isinstance(cell, bool):
        return ("boolean", cell)
    return cell


def containment(child: pa.Table, parent: pa.Table, semantics: str) -> float | None:
    """The share of the child's rows that the parent has; None where its columns are not all there."""
    names = child.column_names
    if not names or not set(names) <= set(parent.column_names):
        return None
    mine, its = (
        Counter(tuple(value(v) for v in r.values()) for r in t.select(names).to_pylist()) for t in (child, parent)
    )
    if semantics == "set":
        return 1.0 if not mine else sum(r in its for r in mine) / len(mine)
    return 1.0 if not mine else sum(min(n, its[r]) for r, n in mine.items()) / sum(mine.values())


def true_edges(tables: Mapping[str, pa.Table], semantics: str, least: float = 1.0) -> dict[tuple[str, str], float]:
    """(child, parent) -> containment, of all pairs that reach ``least``."""
    found = {}
    for child, rows in tables.items():
        for parent, others in tables.items():
            share = containment(rows, others, semantics) if child != parent else None
            if share is not None and share >= least:
                found[child, parent] = share
    return found
