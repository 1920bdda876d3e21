"""A scan of a lake as a page with pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nett.core.report import Code, Page
from nett.core.report.words import size
from nett.lake.graph import MOST, draw, nodes_of

_BARS = 20


def lake_page(told: Mapping[str, Any]) -> Page:
    """One page of all that ``--json`` says of a scan."""
    page = Page("nett lake scan", told["path"])
    tables = {t["name"]: t for t in told["tables"]}
    nodes = nodes_of(told["tables"], told["edges"])
    spare = sum(n.bytes if n.parents else n.bytes - max(tables[x]["bytes"] for x in n.names) for n in nodes)
    children = {e["child"] for e in told["edges"] if e["containment"] == 1}
    page.verdict(
        f"{len(children):,} of {len(tables):,} tables are contained in another; one copy of each row would take "
        f"{size(spare)} less of {size(told['bytes'])}."
    )
    if any(not e["verified"] for e in told["edges"]):
        page.text("Edges were not verified row by row: they are as sure as the sample.", dim=True)
    page.text(
        f"Compared as {told['semantics']}s of rows. What to delete, and how it is rebuilt: nett lake plan.", dim=True
    )
    page.contents()
    _graph(page, nodes)
    _stages(page, told)
    _near(page, told)
    if told["warnings"]:
        page.heading("What could not be read")
        rows = [[Code(w["table"]), w["warning"], w["why"]] for w in told["warnings"]]
        page.table(["table", "warning", "why"], rows)
    return page


def _graph(page: Page, nodes: list[Any]) -> None:
    page.heading("Which tables are contained in which")
    if not nodes:
        page.text("No table is contained in another.")
        return
    note = (
        "each box is a table, or tables that hold the same rows (their number stands in it); arrows lead to the parent"
    )
    page.drawing(draw(nodes[:MOST]), title="Containment graph", note=note)
    if len(nodes) > MOST:
        page.text(f"The {MOST} largest of {len(nodes):,} are drawn; --json FILE has all.", dim=True)
    rows = [
        [
            Code(n.names[0]),
            len(n.names),
            size(n.bytes),
            Code(n.parents[0].names[0]) if n.parents else "",
            len(n.parents),
        ]
        for n in nodes
        if n.parents or len(n.names) > 1
    ]
    page.table(["table", "equal tables", "bytes", "is in", "nearest parents"], rows, caption="The largest first")
    bars = [(n.names[0], n.bytes) for n in nodes if n.parents][:_BARS]
    if bars:
        page.bars(bars, title="Largest tables that another contains", unit="bytes")


def _stages(page: Page, told: Mapping[str, Any]) -> None:
    page.heading("How they were found")
    stages, count = told["stages"], len(told["tables"])
    page.bars(
        [("all pairs", count * (count - 1)), *((s["name"], s["pairs"]) for s in stages)],
        title="Pairs left after each stage",
    )
    read = sum(s["bytes_read"] for s in stages)
    page.bars(
        [("in the lake", told["bytes"]), ("read", read)], title="Bytes read, beyond footers", unit="bytes",
        note="a table that is compared with several is read several times",
    )  # fmt: skip
    page.table(
        ["stage", "pairs left", "bytes read", "seconds"],
        [[s["name"], s["pairs"], s["bytes_read"], s["seconds"]] for s in stages],
    )


def _near(page: Page, told: Mapping[str, Any]) -> None:
    near = sorted((e for e in told["edges"] if e["containment"] < 1), key=lambda e: -e["containment"])
    if not near:
        return
    page.heading("Nearly contained")
    page.table(
        ["table", "is in", "share", "rows that differ", "such as"],
        [
            [
                Code(e["child"]),
                Code(e["parent"]),
                e["containment"],
                e["missing"],
                Code(str(e["lacking"][0]["row"])[:200]),
            ]
            for e in near
        ],
    )
