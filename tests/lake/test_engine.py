"""The verbs of an engine for several keys and several children at once: what each would say alone, by plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nett
from nett.lake.discovery import find_tables
from nett.lake.duck import Duck
from nett.lake.place import Place
from nett.lake.protocol import Containment, Key
from nett.lake.table import Table

scan: Callable[..., dict[str, Any]] = nett.lake.scan
BOTH: Key = (("a", "value"), ("b", "value"))
FIRST: Key = (("a", "value"),)
SECOND: Key = (("b", "text"),)


@pytest.fixture(scope="module")
def duck() -> Iterator[Duck]:
    engine = Duck(threads=1)
    yield engine
    engine.close()


def tables_of(folder: Path, tables: dict[str, pa.Table]) -> dict[str, Table]:
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=1000)
    return {t.name.removesuffix(".parquet"): t for t in find_tables(Place(str(folder)))[0]}


def test_a_sample_is_the_smallest_hashes_of_distinct_rows(duck: Duck, tmp_path: Path) -> None:
    chance = np.random.default_rng(5)
    many = pa.table({"a": chance.integers(0, 3000, 5000), "b": [f"t{v}" for v in chance.integers(0, 7, 5000)]})
    table = tables_of(tmp_path, {"many": many})["many"]
    everything = duck.sample(table, [BOTH, FIRST, SECOND], 10**6)
    rows = list(zip(*many.to_pydict().values(), strict=True))
    assert [h.size for h in everything] == [len(set(rows)), len({a for a, _ in rows}), 7]
    assert all((np.diff(h.astype(float)) > 0).all() for h in everything)
    for count in (1, 16, 400, 5000):  # 16 by a bound; of the second column there are too few below it
        found = duck.sample(table, [SECOND, BOTH, FIRST], count)
        wanted = [everything[2], everything[0], everything[1]]
        assert all(np.array_equal(f, w[:count]) for f, w in zip(found, wanted, strict=True))
        assert np.array_equal(duck.sample(table, [FIRST], count)[0], everything[1][:count])


def test_what_is_present_is_told_for_each_key(duck: Duck, tmp_path: Path) -> None:
    rows = [{"a": i % 50, "b": None if i % 7 == 0 else str(i % 11)} for i in range(3000)]
    made = tables_of(
        tmp_path, {"parent": pa.Table.from_pylist(rows), "child": pa.table({"b": ["3", "x", None], "a": [3, 3, 0]})}
    )
    keys: list[Key] = [BOTH, FIRST, SECOND]
    wanted = dict(zip(keys, duck.sample(made["child"], keys, 10), strict=True))
    there = duck.present(made["parent"], {**wanted, (("b", "value"),): wanted[FIRST][:0]})
    # ("3", 3): i % 11 == 3 and i % 50 == 3; (None, 0): i % 7 == 0 and i % 50 == 0; "x" is nowhere.
    assert [there[k].size for k in keys] == [2, 2, 2] and there[(("b", "value"),)].size == 0
    assert all(set(there[k]) <= set(wanted[k]) for k in keys)
    assert [wanted[k].size for k in keys] == [3, 2, 3]


FAMILY: dict[str, list[Any]] = {
    "parent": [(i % 40, i % 3 or None, i / 2) for i in range(120)],
    "all": [(i % 40, i % 3 or None, i / 2) for i in range(119, -1, -1)],
    "twice": [(1, 1, 0.5), (1, 1, 0.5), (2, 2, 1.0)],
    "lacks two": [(1, 1, 0.5), (1, 1, 77.0), (1, 1, 77.0), (5, None, -1.0)],
    "none": [],
}


@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("semantics", ["set", "bag"])
@pytest.mark.parametrize("room", [0.0, 1e9])
def test_children_together(duck: Duck, tmp_path: Path, semantics: Any, count: bool, room: float) -> None:
    """With and without memory to hold the parent in: columns in other orders, fewer columns, other types."""

    def table(rows: list[Any], names: str, types: dict[str, Any] | None = None) -> pa.Table:
        kinds = {"a": pa.int64(), "b": pa.int64(), "c": pa.float64()} | (types or {})
        return pa.table({n: pa.array([r["abc".index(n)] for r in rows], kinds[n]) for n in names})

    made = {name: table(rows, "abc") for name, rows in FAMILY.items()}
    made |= {f"{name} turned": table(rows, "cab") for name, rows in FAMILY.items()}
    made |= {f"{name} narrow": table(rows, "ba") for name, rows in FAMILY.items()}
    made |= {f"{name} floats": table(rows, "abc", {"a": pa.float64()}) for name, rows in FAMILY.items()}
    tables = tables_of(tmp_path, made)
    children = [t for name, t in tables.items() if name != "parent"]
    before, duck._room = duck._room, room
    found = duck.missing(children, tables["parent"], semantics, count=count)
    duck._room = before
    for child, told in zip(children, found, strict=True):
        rows = made[child.name.removesuffix(".parquet")]
        its = Counter(tuple(r.values()) for r in made["parent"].select(rows.column_names).to_pylist())
        mine = Counter(tuple(r.values()) for r in rows.to_pylist())
        mine = Counter(dict.fromkeys(mine, 1)) if semantics == "set" else mine
        lacking = sum(max(0, n - (its[r] and (n if semantics == "set" else its[r]))) for r, n in mine.items())
        assert (told.missing == 0) == (lacking == 0), child.name
        if count and lacking:
            assert told == Containment(sum(mine.values()), lacking), child.name
        assert duck.missing([child], tables["parent"], semantics, count=count) == [told]


def test_times_of_several_units_are_equal_where_they_are(tmp_path: Path) -> None:
    """Nanoseconds end in 2262, and go below the microseconds that a table of the year 9999 has."""
    far, near, day = datetime(9999, 12, 31), datetime(2024, 1, 1, 0, 0, 1), date(2024, 1, 2)
    made = {
        "us": pa.array([far, near], pa.timestamp("us")),
        "ns": pa.array([near], pa.timestamp("ns")),
        "below": pa.array([1_704_067_201_000_000_001], pa.timestamp("ns")),  # a nanosecond later than that
        "parent": pa.array([far, near, near + timedelta(1), datetime(2024, 1, 2)], pa.timestamp("us")),
        "fine": pa.array([near, datetime(2024, 1, 2)], pa.timestamp("ns")),
        "day": pa.array([day], pa.date32()),
    }
    for name, column in made.items():
        pq.write_table(pa.table({"t": column}), tmp_path / f"{name}.parquet")
    for name, unit, values in (("ms", "ms", [far]), ("s", "s", [near])):
        table = pa.table({"t": pa.array(values, pa.timestamp(unit))})
        with pa.OSFile(str(tmp_path / f"{name}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    told = scan(str(tmp_path))
    near_ones = {(a, b) for a in ("ns", "s") for b in ("ns", "s", "us", "fine", "parent") if a != b}
    wanted = near_ones | {
        ("us", "parent"),
        ("ms", "us"),
        ("ms", "parent"),
        ("fine", "parent"),
        ("day", "fine"),
        ("day", "parent"),
    }
    assert {(e["child"].split(".")[0], e["parent"].split(".")[0]) for e in told["edges"]} == wanted
    assert not told["warnings"]


TYPES = {
    "int": pa.int64(),
    "float": pa.float64(),
    "single": pa.float32(),
    "fine": pa.decimal128(30, 4),
    "whole": pa.decimal128(24, 0),
}
KINDS = {"int": "integer", "float": "float", "single": "float", "fine": "decimal", "whole": "decimal"}
VALUES = [None, 0, 1, 2, 2**53, 2**53 + 1, 2**60 + 1, 3 * 10**17 + 1]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tables=st.lists(
        st.tuples(st.sampled_from(sorted(TYPES)), st.lists(st.sampled_from(VALUES), max_size=5)), min_size=3, max_size=6
    )
)
def test_nothing_is_inferred_through_another_type_that_is_not_so(
    tmp_path_factory: pytest.TempPathFactory, tables: list[tuple[str, list[Any]]]
) -> None:
    """Numbers that are one as floats and two as integers; decimals of two scales."""
    folder = tmp_path_factory.mktemp("lake")
    held: dict[str, tuple[str, list[Any]]] = {}
    for number, (type, values) in enumerate(tables):
        cells = [None if v is None else Decimal(v) if "decimal" in KINDS[type] else v for v in values]
        if KINDS[type] == "float":
            cells = [None if v is None else float(np.float32(v) if type == "single" else v) for v in cells]
        name = f"{number}-{type}.parquet"
        pq.write_table(pa.table({"v": pa.array(cells, TYPES[type]), "n": pa.array([0] * len(cells))}), folder / name)
        held[name] = (KINDS[type], cells)
    wanted = set()
    for child, (kind, mine) in held.items():
        for parent, (other, its) in held.items():
            as_one = (lambda v: v) if kind == other else (lambda v: None if v is None else float(v))
            if child != parent and {as_one(v) for v in mine} <= {as_one(v) for v in its}:
                wanted.add((child, parent))
    assert {(e["child"], e["parent"]) for e in scan(str(folder))["edges"]} == wanted
