"""Tables that are nearly contained: how many rows differ, which, and whatever is in them."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nett
from support.cli import nett as cli

scan: Any = nett.lake.scan  # type: ignore[attr-defined]
HOSTILE = ["\x1b[31mred", "line\nbreak", "\u202egpj.exe", "\x9b2J", "'; DROP TABLE x; --", "é\x00"]


def lake(folder: Path, child: pa.Table, parent: pa.Table) -> str:
    pq.write_table(child, folder / "child.parquet")
    pq.write_table(parent, folder / "parent.parquet")
    return str(folder)


@settings(max_examples=20, deadline=None)
@given(
    child=st.lists(st.tuples(st.sampled_from([None, 1, 2, 3]), st.sampled_from(["a", "b", None])), max_size=12),
    parent=st.lists(st.tuples(st.sampled_from([None, 1, 2, 3]), st.sampled_from(["a", "b", None])), max_size=12),
    semantics=st.sampled_from(["set", "bag"]),
)
def test_every_row_that_differs_is_named(
    tmp_path_factory: pytest.TempPathFactory, child: list[Any], parent: list[Any], semantics: str
) -> None:
    folder = tmp_path_factory.mktemp("lake")
    types = [("k", pa.int64()), ("s", pa.string())]
    mine, its = (pa.table([[r[i] for r in rows] for i in (0, 1)], schema=pa.schema(types)) for rows in (child, parent))
    told = scan(lake(folder, mine, its), min_containment=0.01, semantics=semantics)
    lacking = Counter(child) - Counter(parent) if semantics == "bag" else Counter(set(child) - set(parent))
    rows = len(child) if semantics == "bag" else len(set(child))
    (edge,) = [e for e in told["edges"] if e["child"] == "child.parquet"] or [None]
    if not lacking:
        assert edge is not None and "lacking" not in edge and edge["containment"] == 1
        return
    if 1 - lacking.total() / rows < 0.01:
        assert edge is None
        return
    assert edge is not None and edge["missing"] == lacking.total()
    assert {(r["row"]["k"], r["row"]["s"]): r.get("times", 1) for r in edge["lacking"]} == dict(lacking)


def test_rows_that_stand_often_count_as_often_in_bags(tmp_path: Path) -> None:
    rows = [0] * 1960 + list(range(1, 41))  # of 41 distinct rows the parent has one
    folder = lake(tmp_path, pa.table({"a": rows}), pa.table({"a": [0] * 1960}))
    near = [
        (e["containment"], e.get("missing", 0)) for e in scan(folder, semantics="bag", min_containment=0.95)["edges"]
    ]
    assert sorted(near) == [(0.98, 40), (1.0, 0)]
    assert len(scan(folder, semantics="set", min_containment=0.95)["edges"]) == 1


def test_at_most_twenty_rows_are_shown_as_json(tmp_path: Path) -> None:
    import datetime

    count = 1000
    whole = pa.table({
        "i": list(range(count)), "f": [float("nan"), 1.5] * (count // 2), "d": [Decimal("1.50")] * count,
        "t": [datetime.datetime(2024, 1, 2, 3, 4)] * count, "x": [b"\x00\xff"] * count,
        "n": [{"a": {"b": "c"}}] * count, "l": [[1, 2]] * count,
    })  # fmt: skip
    lake(tmp_path, whole, whole.slice(30))
    (edge,) = (e for e in scan(str(tmp_path), min_containment=0.95)["edges"] if e["child"] == "child.parquet")
    assert edge["containment"] == 0.97 and edge["missing"] == 30 and len(edge["lacking"]) == 20
    first = json.loads(json.dumps(edge["lacking"][0], allow_nan=False))["row"]
    assert first == {
        "i": 0, "f": "nan", "d": "1.5", "t": "2024-01-02T03:04:00", "x": "0x00ff", "n.a.b": "c", "l": "[1, 2]",
    }  # fmt: skip
    assert scan(str(tmp_path), min_containment=0.98)["edges"] == scan(str(tmp_path))["edges"]


def test_hostile_rows_and_names_are_escaped_in_text(tmp_path: Path) -> None:
    folder = tmp_path / "lake"
    folder.mkdir()
    values = [f"plain{i}" for i in range(200)]
    pq.write_table(pa.table({"a\x1b[2J": values + HOSTILE}), folder / "bad\x1b[31m\nname.parquet")
    pq.write_table(pa.table({"a\x1b[2J": values}), folder / "parent.parquet")
    done = cli("lake", "scan", str(folder), "--min-containment", "0.5", "--json", str(tmp_path / "o.json")).succeeded()
    assert all(c == "\n" or c.isprintable() for c in done.out) and "6 rows are not" in done.out
    (edge,) = (e for e in json.loads((tmp_path / "o.json").read_text())["edges"] if e["containment"] < 1)
    assert {r["row"]["a\x1b[2J"] for r in edge["lacking"]} == set(HOSTILE)
