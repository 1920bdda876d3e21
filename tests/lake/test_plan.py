"""Plans: what they cost, what keeps a table, which way is taken, and what the file says."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nett
from nett.core.errors import Refused, UsageError
from support.cli import nett as cli
from support.lakes import write_csv, write_lake

plan: Callable[..., dict[str, Any]] = nett.lake.plan  # type: ignore[attr-defined]
GB = 1e9


def gone(told: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {d["table"]["name"]: tuple(p["parent"] for p in d["rebuild"]["parts"]) for d in told["delete"]}


def chain(lake: Path, *, sizes: tuple[int, ...] = (800, 400, 200, 100)) -> dict[str, int]:
    """Tables of which each is the beginning of the one before; their bytes."""
    lake.mkdir(parents=True, exist_ok=True)
    base = pa.table({"id": list(range(sizes[0])), "x": [i * i % 9973 for i in range(sizes[0])]})
    for name, size in zip("abcdefgh", sizes, strict=False):
        pq.write_table(base.slice(0, size), lake / f"{name}.parquet")
    return {p.name: p.stat().st_size for p in sorted(lake.iterdir())}


def test_the_least_cost_is_found(tmp_path: Path) -> None:
    """Against every choice of kept tables, written from the paper's terms."""
    sizes = chain(tmp_path / "lake")
    names = sorted(sizes)
    accesses = {"a.parquet": 0.0, "b.parquet": 1.0, "c.parquet": 3.0, "d.parquet": 2.0}
    (tmp_path / "access.csv").write_text(
        "name,accesses,operations\n" + "".join(f"{n},{accesses[n]},{0.5}\n" for n in names)
    )
    prices = {"storage": 0.02, "maintenance": 0.01, "read": 0.002, "write": 0.004, "months": 3}
    (tmp_path / "prices.yml").write_text("\n".join(f"{k}: {v}" for k, v in prices.items()))

    def cost(kept: tuple[str, ...]) -> float:
        total = sum(sizes[n] * (0.02 + 0.01 * 0.5) for n in kept)
        for name in set(names) - set(kept):
            parents = [p for p in kept if p < name]  # each is in those before it
            if not parents:
                return float("inf")
            total += min(accesses[name] * (0.002 * columns(p) + 0.004 * sizes[name]) for p in parents)
        return total * 3 / GB

    def columns(parent: str) -> int:
        with pq.ParquetFile(tmp_path / "lake" / parent) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            return sum(g.column(c).total_compressed_size for g in groups for c in range(2))

    choices = {kept: cost(kept) for r in range(1, 5) for kept in itertools.combinations(names, r)}
    best = min(choices.values())
    given = {"access": tmp_path / "access.csv", "prices": tmp_path / "prices.yml", "threads": 1}
    for solver in ("auto", "ilp"):
        told = plan(str(tmp_path / "lake"), solver=solver, **given)
        assert told["cost"]["plan"] == pytest.approx(best, rel=1e-9) == pytest.approx(told["cost"]["bound"], rel=1e-9)
        assert choices[tuple(n for n in names if n not in gone(told))] == pytest.approx(best)
        assert told["cost"]["keep_all"] == pytest.approx(cost(tuple(names))) and told["cost"]["greedy"] >= best * (
            1 - 1e-9
        )
    assert plan(str(tmp_path / "lake"), solver="greedy", **given)["cost"]["plan"] >= best * (1 - 1e-9)
    assert "gap 0.00%" in cli("lake", "plan", str(tmp_path / "lake")).succeeded().out


def test_one_root_serves_a_long_line(tmp_path: Path) -> None:
    """However many lie between: only some parents of a table are tried, the one that stays among them."""
    for i in range(11):
        table = pa.table({"id": list(range(90 + i)), "x": [j * j % 997 for j in range(90 + i)]})
        pq.write_table(table, tmp_path / f"{i:02}.parquet")
    told = plan(str(tmp_path), threads=1)
    assert gone(told) == {f"{i:02}.parquet": ("10.parquet",) for i in range(10)}


def test_only_ways_that_are_taken_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 66 containments in a line of twelve, eleven."""
    from nett.lake import ways

    tried: list[tuple[str, str]] = []
    find = ways.find

    def watched(bench: Any, child: Any, parent: Any, *more: Any) -> Any:
        tried.append((child.table.name, parent.name))
        return find(bench, child, parent, *more)

    monkeypatch.setattr(ways, "find", watched)
    for i in range(12):
        table = pa.table({"id": list(range(90 + i)), "x": [j * j % 997 for j in range(90 + i)]})
        pq.write_table(table, tmp_path / f"{i:02}.parquet")
    told = plan(str(tmp_path), threads=1)
    assert (
        sorted(tried)
        == [(f"{i:02}.parquet", "11.parquet") for i in range(11)]
        == [(c, *p) for c, p in sorted(gone(told).items())]
    )


def test_a_way_that_costs_more_than_was_supposed_is_weighed_again(tmp_path: Path) -> None:
    """A few rows by chance are supposed to be free of a selector; it takes more than the table, so the table stays."""
    chance = np.random.default_rng(2)
    base = pa.table({"x": pa.array(chance.integers(0, 256, 40_000), pa.int16())})
    few = base.take(
        pa.array(chance.permutation(40_000)[:9000])
    )  # a byte a row, in an order of their own, which takes two
    for name, table in {"base": base, "few": few, "half": base.slice(0, 20_000)}.items():
        pq.write_table(table, tmp_path / f"{name}.parquet", compression="zstd")
    told = plan(str(tmp_path), threads=1)
    assert gone(told) == {"half.parquet": ("base.parquet",)}
    assert "its row selector would take" in told["kept"]["few.parquet"]
    for deletion in told["delete"]:
        stored = sum(p["rows"]["bytes"] for p in deletion["rebuild"]["parts"] if p["rows"]) + (
            deletion["rebuild"]["order"]["bytes"] if deletion["rebuild"]["order"] else 0
        )
        assert stored < deletion["bytes"]
    freed = told["cost"]["keep_all"] - told["cost"]["plan"]
    assert freed == pytest.approx(sum(d["saves"] for d in told["delete"]))


def test_lines_by_dyn_lin(tmp_path: Path) -> None:
    chain(tmp_path, sizes=(800, 400, 200))
    told = plan(str(tmp_path), solver="dyn-lin", threads=1)
    assert gone(told) == gone(plan(str(tmp_path), solver="ilp", threads=1)) and told["cost"]["gap"] == 0


def test_what_is_read_often_stays(tmp_path: Path) -> None:
    chain(tmp_path / "lake")
    (tmp_path / "access.csv").write_text("name,accesses\nb.parquet,500\nnothere,1\n")
    told = plan(str(tmp_path / "lake"), access=tmp_path / "access.csv", threads=1)
    assert set(gone(told)) == {"c.parquet", "d.parquet"} and told["unknown"] == ["nothere"]
    assert "costs more than keeping it" in told["kept"]["b.parquet"]
    (tmp_path / "slow.yml").write_text("start_seconds: 0\nread_mb_s: 0.1\nwrite_mb_s: 0.01\n")
    told = plan(str(tmp_path / "lake"), prices=tmp_path / "slow.yml", max_restore_seconds=1.0, threads=1)
    assert set(gone(told)) == {"d.parquet"} or all(d["seconds"] <= 1 for d in told["delete"])


RULES: dict[str, tuple[str, set[str]]] = {
    "keep: [{match: 'c*'}]": ("c", {"c"}),
    "keep: [{match: 'c*', why: the books}]": ("the books", {"c"}),
    "keep: [{owner: alice}]\ntables: {'[bc]*': {owner: alice}}": ("owner alice", {"b", "c"}),
    "keep: [{owner: alice, match: 'b*'}]\ntables: {'[bc]*': {owner: alice}}": ("owner alice", {"b"}),
    "keep: [{tag: gold}]\ntables: {'d*': {tags: [gold, x]}, 'c*': {tags: [x]}}": ("tag gold", {"d"}),
    "keep: [{min_age: 2d}]": ("min_age 2d", {"b"}),
    "hold: ['c*', 'd*']": ("legal hold", {"c", "d"}),
    "tables: {'c*': {hold: true}}": ("legal hold", {"c"}),
}


@pytest.mark.parametrize("text", RULES)
def test_rules_keep_tables(tmp_path: Path, text: str) -> None:
    chain(tmp_path / "lake")
    (tmp_path / "rules.yml").write_text(text)
    words, kept = RULES[text]
    for file in (tmp_path / "lake").iterdir():
        old = time.time() - (86400 if file.name[0] == "b" else 5 * 86400)
        os.utime(file, (old, old))
    told = plan(str(tmp_path / "lake"), rules=tmp_path / "rules.yml", threads=1)
    assert {n[0] for n in gone(told)} == {"b", "c", "d"} - kept
    assert all(words in told["kept"][f"{n}.parquet"] for n in kept)


def test_rules_by_words(tmp_path: Path) -> None:
    import getpass

    chain(tmp_path, sizes=(800, 400, 200))
    assert set(gone(plan(str(tmp_path), keep="b*,x*", threads=1))) == {"c.parquet"}
    assert set(gone(plan(str(tmp_path), hold="c*", threads=1))) == {"b.parquet"}
    assert not gone(plan(str(tmp_path), min_age="1h", threads=1))
    assert not gone(plan(str(tmp_path), owner=getpass.getuser(), threads=1))


BAD = {
    ("prices", "storag: 1"): "Did you mean 'storage'",
    ("prices", "storage: -1"): "storage = -1",
    ("prices", "storage: .inf"): "storage",
    ("prices", "[1]"): "holds a list",
    ("prices", "a: b: c"): "is no YAML",
    ("rules", "keep: [{macth: x}]"): "Did you mean 'match'",
    ("rules", "keep: [{}]"): "a rule that says nothing",
    ("rules", "keep: [{min_age: soon}]"): "no length of time",
    ("access", "table,reads\na,1\n"): "taken are name, accesses, operations",
    ("access", "name,accesses\na,often\n"): "accesses = 'often'",
    ("access", "name,accesses\na,-1\n"): "accesses = '-1'",
}


@pytest.mark.parametrize("bad", BAD)
def test_files_that_say_what_is_not_known(tmp_path: Path, bad: tuple[str, str]) -> None:
    option, text = bad
    (tmp_path / "file").write_text(text)
    (tmp_path / "lake").mkdir()
    with pytest.raises(UsageError) as caught:
        plan(str(tmp_path / "lake"), **{option: tmp_path / "file"})
    assert BAD[bad] in str(caught.value)


def test_a_scan_to_start_from(tmp_path: Path) -> None:
    """Its edges are tried, whatever it says of them; tables that are gone since do not matter."""
    write_lake(tmp_path / "lake")
    cli("lake", "scan", str(tmp_path / "lake"), "--json", str(tmp_path / "scan.json")).succeeded()
    wanted = gone(plan(str(tmp_path / "lake"), threads=1))
    assert gone(plan(str(tmp_path / "lake"), scan=tmp_path / "scan.json", threads=1)) == wanted
    told = json.loads((tmp_path / "scan.json").read_text())
    told["edges"] = [{"child": "other_rows.parquet", "parent": "base.parquet", "containment": 1}]
    told["edges"] += [{"child": "none", "parent": "base.parquet", "containment": 1}]
    (tmp_path / "scan.json").write_text(json.dumps(told))
    found = plan(str(tmp_path / "lake"), scan=tmp_path / "scan.json", threads=1)
    assert set(gone(found)) <= {"base.parquet", "copies/base.parquet"}  # of equal bytes
    assert "with these very values" in found["kept"]["other_rows.parquet"]
    (tmp_path / "scan.json").write_text("{}")
    with pytest.raises(Refused, match="is not what nett lake scan --json writes"):
        plan(str(tmp_path / "lake"), scan=tmp_path / "scan.json")


def test_what_cannot_be_rebuilt_stays_and_is_told_why(tmp_path: Path) -> None:
    write_csv(tmp_path / "whole.csv", ["a", "b"], [[str(i), "x"] for i in range(60)])
    write_csv(tmp_path / "points.csv", ["a"], [[f"{i}.0"] for i in range(60)])
    rows = [{"in": {"x": i, "y": i}} for i in range(60)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "deep.parquet")
    pq.write_table(
        pa.table({"in.x": list(range(60)), "in.y": list(range(60)), "z": [0] * 60}), tmp_path / "flat.parquet"
    )
    told = plan(str(tmp_path), threads=1)
    assert not told["delete"]
    assert "with these very values" in told["kept"]["points.csv"]
    assert "'in' is not in 'flat.parquet' as one column" in told["kept"]["deep.parquet"]


def test_months_make_a_year(tmp_path: Path) -> None:
    base = pa.table({"id": list(range(400)), "x": [i * i % 9973 for i in range(400)]})
    for month in range(4):
        pq.write_table(base.slice(month * 100, 100), tmp_path / f"m{month}.parquet")
    pq.write_table(base, tmp_path / "year.parquet")
    # Twelve months from a year are cheaper stored than a year from its months, unless these must stay.
    assert set(gone(plan(str(tmp_path), threads=1))) == {f"m{i}.parquet" for i in range(4)}
    pq.write_table(pa.concat_tables([base.slice(50, 350), base.slice(7, 1)]), tmp_path / "year.parquet")
    told = plan(str(tmp_path), threads=1)
    assert gone(told) == {"year.parquet": ("m1.parquet", "m2.parquet", "m3.parquet", "m0.parquet")} or (
        set(gone(told)) == {"m1.parquet", "m2.parquet", "m3.parquet"}
    )
    assert "year.parquet" in gone(plan(str(tmp_path), keep="m*", threads=1))
    assert not gone(plan(str(tmp_path), keep="m*", several=False, threads=1))


def test_the_file(tmp_path: Path) -> None:
    """Readable, relative names only, the SQL runs in DuckDB from the lake's folder."""
    import duckdb

    write_lake(tmp_path / "lake")
    out = tmp_path / "plans" / "p.json"
    with pytest.raises(Refused, match="no such folder"):
        plan(str(tmp_path / "lake"), out=out)
    out.parent.mkdir()
    plan(str(tmp_path / "lake"), out=out, threads=1)
    text = out.read_text()
    told = json.loads(text)
    assert str(tmp_path) not in text and told["lake"] == "../lake"
    rows = {d["table"]["name"]: (d["sql"], d["rows"]) for d in told["delete"]}
    here = Path.cwd()
    os.chdir(tmp_path / "lake")
    try:
        for sql, count in rows.values():
            assert len(duckdb.sql(sql).fetchall()) == count
    finally:
        os.chdir(here)
    assert {"cost", "delete", "parents", "kept", "prices"} <= told.keys()
    assert set(told["cost"]) == {"keep_all", "plan", "greedy", "bound", "gap", "solver"}
