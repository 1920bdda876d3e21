"""The page of a scan: what is contained in what, drawn once each, whatever the tables are called."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import nett
from nett.lake.graph import MOST, draw, nodes_of
from nett.lake.page import lake_page
from support.html import assert_self_contained
from support.lakes import write_lake

scan: Any = nett.lake.scan  # type: ignore[attr-defined]


def graph(pairs: list[tuple[str, str]], **sizes: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    names = sorted({n for pair in pairs for n in pair})
    tables = [{"name": n, "bytes": sizes.get(n, 10)} for n in names]
    return tables, [{"child": c, "parent": p, "containment": 1.0} for c, p in pairs]


def test_equal_tables_are_one_node_and_only_nearest_parents_are_drawn() -> None:
    pairs = [("a", "b"), ("b", "a"), ("c", "a"), ("c", "b"), ("d", "c"), ("d", "a"), ("d", "b"), ("e", "a"), ("e", "b")]
    nodes = nodes_of(*graph(pairs, c=100))
    assert [(n.names, [p.names for p in n.parents]) for n in nodes] == [
        (["c"], [["a", "b"]]), (["a", "b"], []), (["d"], [["c"]]), (["e"], [["a", "b"]]),
    ]  # fmt: skip
    svg = draw(nodes)
    assert svg.count("<rect") == 4 and svg.count(" is in ") >= 3
    at = {n.names[0]: n.at[0] for n in nodes}
    assert at["d"] < at["c"] < at["a"] and at["e"] == at["c"]


def test_boxes_do_not_overlap_and_stand_left_of_their_parents() -> None:
    chance = random.Random(0)
    order = [f"t{i:03}" for i in range(140)]
    pairs = {(order[i], order[chance.randrange(i)]) for i in range(1, 140) for _ in range(2) if chance.random() < 0.7}
    nodes = nodes_of(*graph(sorted(pairs)))
    draw(nodes)
    places = [n.at for n in nodes]
    assert len(set(places)) == len(places)
    columns: dict[float, list[float]] = {}
    for x, y in places:
        columns.setdefault(x, []).append(y)
    for ys in columns.values():
        assert all(b - a >= 38 for a, b in zip(sorted(ys), sorted(ys)[1:], strict=False))
    assert all(p.at[0] > n.at[0] or p.layer == n.layer for n in nodes for p in n.parents)


def test_the_page_of_a_lake(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    write_lake(lake)
    pq.write_table(pa.table({"x": [1, 2]}), lake / "<script>alert(1)</script>'\"&\x1b\u202e.parquet".replace("/", "_"))
    (lake / "cut.parquet").write_bytes(b"PAR1")
    told = scan(str(lake), min_containment=0.5, html=tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    parts = assert_self_contained(html)
    assert "<script>" not in html and "\x1b" not in html and "\u202e" not in html
    for words in (
        "Containment graph",
        "cut.parquet",
        "Pairs left after each stage",
        "Nearly contained",
        "one_more.parquet",
    ):
        assert words in parts.text
    assert lake_page(told).render() == html


def test_a_lake_without_edges_and_one_with_too_many_for_a_picture(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    assert "No table is contained in another" in assert_self_contained(lake_page(scan(str(tmp_path))).render()).text
    count = 2 * MOST
    pairs = [(f"c{i}", "p") for i in range(count)]
    tables, edges = graph(pairs)
    for edge in edges:
        edge |= {"semantics": "set", "verified": True}
    told = {
        "path": "/lake", "semantics": "set", "tables": tables, "edges": edges, "stages": [], "bytes": 10, "warnings": [],
    }  # fmt: skip
    html = lake_page(told).render()
    assert f"The {MOST} largest of {count + 1:,} are drawn" in assert_self_contained(html).text
    assert html.count(' rx="4"') == MOST
