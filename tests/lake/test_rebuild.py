"""Ways to have a table from others: each gives exactly its bag, and what is only nearly equal has none."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lake.test_scan import CELLS
from nett.lake.discovery import described, find_tables
from nett.lake.exact import Bag, NotExact
from nett.lake.place import Place
from nett.lake.rebuild import Rebuild, rebuild_sql, shown_sql
from nett.lake.rebuild_find import find, lay, row_counts
from nett.lake.rebuild_selector import load_picks
from nett.lake.rebuild_union import find_union
from nett.lake.table import File, Table
from nett.lake.workbench import Workbench
from nett.lake.written import form_of, same_form, write
from support.lakes import value, write_csv


@pytest.fixture(scope="module")
def bench() -> Iterator[Workbench]:
    with Workbench(threads=1) as made:
        yield made


def tables_of(folder: Path) -> dict[str, Table]:
    from nett.lake.duck import Duck

    found, warnings = find_tables(Place(str(folder)))
    assert not warnings
    engine = Duck(threads=1)
    for table in found:
        table.learn(engine.profile(table))
    engine.close()
    return {t.name: t for t in found}


def rows(table: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(value(v) for v in r.values()) for r in table.to_pylist()]


def redone(bench: Workbench, rebuild: Rebuild, child: Table, tables: dict[str, Table], folder: Path) -> Path:
    """The child written from its parents alone, in its own form; and that it has that form."""
    form = form_of(bench, child)
    own = bench.own(child)
    picks = load_picks(bench, rebuild, folder, row_counts(bench, rebuild, tables))
    sql = rebuild_sql(rebuild, own, tables, bench.source, bench.projected, picks)
    out = folder / f"redone{Path(child.name).suffix}"
    write(bench, sql, form, out)
    again = described("again", child.format, [File(str(out), out.stat().st_size, "")])
    assert same_form(form_of(bench, again), form) and lay(bench, again).bag == lay(bench, child).bag
    return out


BASE = pa.table({
    "id": pa.array(range(40), pa.int64()),
    "name": [f"n{i % 7}" if i % 5 else None for i in range(40)],
    "value": [i / 4 for i in range(40)],
    "group": ["a", "b"] * 20,
})  # fmt: skip
WAYS: dict[str, tuple[pa.Table, str, str]] = {
    "copy": (BASE, "whole", ""),
    "columns": (BASE.select(["value", "name"]), "whole", ""),
    "reversed": (BASE.take(pa.array(range(39, -1, -1))), "whole", ""),
    "names": (BASE.group_by("name").aggregate([]), "distinct", ""),
    "half": (BASE.slice(0, 20).drop(["id"]), "predicate", '"id" BETWEEN CAST(\'0\' AS BIGINT) AND CAST(\'19\' AS BIGINT)'),
    "b": (BASE.filter(pc.equal(BASE["group"], "b")).select(["id"]), "predicate", "\"group\" = CAST('b' AS VARCHAR)"),
    "unnamed": (BASE.filter(pc.is_null(BASE["name"])).drop(["name"]), "predicate", '"name" IS NULL'),
    "two": (BASE.take(pa.array([3, 11, 29])), "predicate", "IN"),
    "named b": (
        BASE.filter(pc.and_(pc.equal(BASE["group"], "b"), pc.equal(BASE["name"], "n3"))),
        "predicate", "\"name\" = CAST('n3' AS VARCHAR) AND \"group\" = CAST('b' AS VARCHAR)",
    ),
    "scattered": (BASE.take(pa.array([i * i % 40 for i in range(25)])), "selector", ""),
    "some twice": (BASE.select(["name"]).take(pa.array([1, 1, 8])), "selector", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_the_plainest_way_is_found(bench: Workbench, tmp_path: Path, name: str) -> None:
    table, kind, words = WAYS[name]
    pq.write_table(BASE, tmp_path / "base.parquet", row_group_size=16)
    pq.write_table(table, tmp_path / "child.parquet")
    tables = tables_of(tmp_path)
    made = find(bench, lay(bench, tables["child.parquet"]), tables["base.parquet"], tmp_path, "s")
    shown = shown_sql(made, bench.own(tables["child.parquet"]), tables, tmp_path)
    assert made.kind == kind and words in shown
    assert made.bytes == sum((tmp_path / s.path).stat().st_size for s in made.stored)
    assert Rebuild.model_validate_json(made.model_dump_json()) == made
    back = pq.read_table(redone(bench, made, tables["child.parquet"], tables, tmp_path))
    assert back.schema.equals(table.schema, check_metadata=True)
    assert rows(back) == rows(table) if made.ordered else Counter(rows(back)) == Counter(rows(table))
    assert made.ordered or name in ("reversed", "names")


@st.composite
def families(draw: st.DrawFn) -> tuple[pa.Table, pa.Table]:
    """A parent, and rows and columns of it."""
    names = draw(st.lists(st.sampled_from(sorted(CELLS)), min_size=1, max_size=4, unique=True))
    cells = draw(st.lists(st.tuples(*(CELLS[n][1] for n in names)), min_size=1, max_size=8))
    parent = pa.table([pa.array([r[i] for r in cells], CELLS[n][0]) for i, n in enumerate(names)], names)
    columns = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    taken = draw(st.lists(st.integers(0, len(cells) - 1), min_size=1, max_size=10))
    return parent, parent.select(columns).take(pa.array(taken, pa.int64()))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(family=families())
def test_rows_of_a_parent_come_back(
    bench: Workbench, tmp_path_factory: pytest.TempPathFactory, family: tuple[pa.Table, pa.Table]
) -> None:
    parent, child = family
    folder = tmp_path_factory.mktemp("lake")
    pq.write_table(parent, folder / "parent.parquet")
    pq.write_table(child, folder / "child.parquet")
    tables = tables_of(folder)
    made = find(bench, lay(bench, tables["child.parquet"]), tables["parent.parquet"], folder, "s")
    back = pq.read_table(redone(bench, made, tables["child.parquet"], tables, folder))
    assert back.schema.equals(child.schema)
    assert rows(back) == rows(child) if made.ordered else Counter(rows(back)) == Counter(rows(child))


@pytest.mark.parametrize("kinds", [1, 2, 7])
@pytest.mark.parametrize("name", WAYS)
def test_nothing_rests_on_the_quick_hash(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kinds: int
) -> None:
    """With a hash that is the same for many rows: a way that gives other rows, or another order, is none."""
    from nett.lake import workbench

    hashed = workbench.row_hash
    monkeypatch.setattr(workbench, "row_hash", lambda *said: f"({hashed(*said)}) % {kinds}")
    table, _, _ = WAYS[name]
    pq.write_table(BASE, tmp_path / "base.parquet", row_group_size=16)
    pq.write_table(table, tmp_path / "child.parquet")
    tables = tables_of(tmp_path)
    try:
        made = find(bench, lay(bench, tables["child.parquet"]), tables["base.parquet"], tmp_path, "s")
    except NotExact:
        return
    back = pq.read_table(redone(bench, made, tables["child.parquet"], tables, tmp_path))
    assert rows(back) == rows(table) if made.ordered else Counter(rows(back)) == Counter(rows(table))


def test_what_is_equal_by_the_scan_only_is_not_rebuilt(bench: Workbench, tmp_path: Path) -> None:
    write_csv(tmp_path / "whole.csv", ["a"], [["1"], ["2"], ["3"]])
    write_csv(tmp_path / "points.csv", ["a"], [["1.0"], ["2"]])
    pq.write_table(pa.table({"a": [1.0, 2.0]}), tmp_path / "floats.parquet")
    pq.write_table(pa.table({"a": [0.0, 2.0]}), tmp_path / "zero.parquet")
    pq.write_table(pa.table({"a": [-0.0, 2.0, 3.0]}), tmp_path / "minus.parquet")
    tables = tables_of(tmp_path)
    for child, parent in [("points.csv", "whole.csv"), ("zero.parquet", "minus.parquet")]:
        with pytest.raises(NotExact, match="with these very values"):
            find(bench, lay(bench, tables[child]), tables[parent], tmp_path, "s")
    made = find(
        bench, lay(bench, tables["floats.parquet"]), tables["whole.csv"], tmp_path, "s"
    )  # '1' is the double 1.0
    assert made.kind == "predicate"
    redone(bench, made, tables["floats.parquet"], tables, tmp_path)


def test_several_parents_together(bench: Workbench, tmp_path: Path) -> None:
    """Months make a year; what none of them has keeps it."""
    for month in range(4):
        pq.write_table(BASE.slice(10 * month, 10), tmp_path / f"m{month}.parquet")
    pq.write_table(BASE, tmp_path / "year.parquet")
    pq.write_table(BASE.slice(5, 20).select(["name", "id"]), tmp_path / "middle.parquet")
    pq.write_table(pa.concat_tables([BASE, BASE.slice(0, 1)]), tmp_path / "more.parquet")
    tables = tables_of(tmp_path)
    months = [tables[f"m{i}.parquet"] for i in (2, 0, 3, 1)]
    made = find_union(bench, lay(bench, tables["year.parquet"]), months, tmp_path, "y")
    assert made.kind == "union" and not made.stored and made.parents == tuple(f"m{i}.parquet" for i in range(4))
    assert pq.read_table(redone(bench, made, tables["year.parquet"], tables, tmp_path)).equals(BASE)
    made = find_union(bench, lay(bench, tables["middle.parquet"]), months, tmp_path, "z")
    assert len(made.parts) == 3 and len(made.stored) == 2
    redone(bench, made, tables["middle.parquet"], tables, tmp_path)
    with pytest.raises(NotExact, match="of its rows are in no other"):
        find_union(bench, lay(bench, tables["more.parquet"]), months, tmp_path, "w")


def test_text_files_come_back_as_they_were(bench: Workbench, tmp_path: Path) -> None:
    cells = [[str(i), "a,b" if i % 3 else 'say "x"', "" if i % 4 == 0 else f"ä{i}"] for i in range(30)]
    write_csv(tmp_path / "all.csv", ["id", "text", "more"], cells)
    write_csv(tmp_path / "few.csv", ["text", "id"], [[c[1], c[0]] for c in cells[7:21]])
    tables = tables_of(tmp_path)
    made = find(bench, lay(bench, tables["few.csv"]), tables["all.csv"], tmp_path, "s")
    assert made.kind == "predicate" and made.ordered
    out = redone(bench, made, tables["few.csv"], tables, tmp_path)
    with out.open(newline="") as one, (tmp_path / "few.csv").open(newline="") as other:
        assert list(csv.reader(one)) == list(csv.reader(other))


def test_rows_in_parts_of_one_output_are_counted_through(bench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for part in range(3):
        pq.write_table(BASE.slice(15 * part, 15), tmp_path / "out" / f"part-{part}.parquet", row_group_size=4)
    pq.write_table(BASE.take(pa.array([39, 2, 17, 30, 14, 15])).select(["name"]), tmp_path / "few.parquet")
    tables = tables_of(tmp_path)
    made = find(bench, lay(bench, tables["few.parquet"]), tables["out"], tmp_path, "s")
    assert made.kind == "selector"
    assert rows(pq.read_table(redone(bench, made, tables["few.parquet"], tables, tmp_path))) == [
        (v,) for v in ["n4", "n2", "n3", None, "n0", None]
    ]


def test_bags_do_not_depend_on_order_and_see_all_else(bench: Workbench, tmp_path: Path) -> None:
    made = {
        "one": {"a": ["x", None, "1:x"], "b": ["", "-", None]},
        "other order": {"a": [None, "1:x", "x"], "b": ["-", None, ""]},
        "moved": {"a": ["x", None, "1:x"], "b": ["-", "", None]},
        "twice": {"a": ["x", "x", "1:x"], "b": ["", "", None]},
        "fewer": {"a": ["x", None], "b": ["", "-"]},
    }
    bags = {}
    for name, columns in made.items():
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        bags[name] = lay(bench, described("t", "parquet", [File(str(tmp_path / "t.parquet"), 0, "")])).bag
    assert bags["one"] == bags.pop("other order") and len(set(bags.values())) == len(bags)
    assert all(Bag.of(str(b)) == b for b in bags.values())


def test_the_bag_is_the_sum_of_md5s(bench: Workbench, tmp_path: Path) -> None:
    from hashlib import md5

    pq.write_table(pa.table({"a": ["ä", None], "b": [7, -1], "c": [b"\xff", b""]}), tmp_path / "t.parquet")
    bag = lay(bench, described("t", "parquet", [File(str(tmp_path / "t.parquet"), 0, "")])).bag
    texts = ["2:ä1:72:FF", "-2:-10:"]
    # DuckDB reads a digest's 16 bytes as an integer, the first byte lowest.
    assert bag == Bag(2, sum(int.from_bytes(md5(t.encode()).digest(), "little") for t in texts))


def test_types_that_are_not_read_exactly_are_named(bench: Workbench, tmp_path: Path) -> None:
    types = [pa.decimal256(50, 0), pa.timestamp("ns", "UTC"), pa.list_(pa.decimal256(50, 0))]
    for type in types:
        pq.write_table(pa.table({"a": pa.array([None], type)}), tmp_path / "t.parquet")
        with pytest.raises(NotExact, match="'a' is of the type"):
            lay(bench, described("t", "parquet", [File(str(tmp_path / "t.parquet"), 0, "")]))
