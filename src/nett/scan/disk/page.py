"""A scan of a disk as a page with pictures."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from nett.core.report import Code, Page, add_edges
from nett.scan.disk.words import MEANING, basis, between, kinds, places, remarks, summary

if TYPE_CHECKING:
    from nett.scan.disk.engine import DiskScan

_LARGEST, _EDGES = 20, 200


def disk_page(scan: DiskScan) -> Page:
    """One page of all that a scan of a disk says."""
    from nett.scan.disk.engine import unreadable

    page = Page("nett scan", "the disk")
    page.verdict(summary(scan))
    if scan.items:
        page.text(basis(scan), dim=True)
    page.contents()
    _there(page, scan)
    if scan.items:
        _free(page, scan)
    if lines := remarks(scan):
        page.heading("Left alone, left over")
        for line in lines:
            page.text(line)
    if trouble := unreadable(scan):
        page.heading("What could not be read")
        page.table(["path", "why"], [[Code(path), why] for path, why in trouble])
    return page


def _there(page: Page, scan: DiskScan) -> None:
    page.heading("What is there")
    page.table(["place", "folder", "found"], [[kind, Code(path), what] for kind, path, what in places(scan)])
    held: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    for item in scan.items:
        held[item.unit] += item.allocated
        formats[item.layout.format if item.layout is not None else "opaque"] += item.allocated
    if scan.items:
        page.bars(formats.most_common(), title="Bytes by format", unit="bytes", note="as allocated on the disk")
        page.bars(held.most_common(_LARGEST), title="Largest models", unit="bytes")


def _free(page: Page, scan: DiskScan) -> None:
    page.heading("What could be freed")
    rows = kinds(scan)
    if not rows:
        page.text("Nothing redundant was found.")
        return
    page.bars(
        [(MEANING.get(k, k), n, f"{count:,} finding{'' if count == 1 else 's'}") for k, count, n in rows],
        title="Bytes by kind of finding",
        unit="bytes",
        note="kinds overlap: together they free what the first sentence says",
    )
    largest = scan.found[:_LARGEST]
    page.bars(
        [(f.edge.target, f.edge.bytes_freed, f"{f.edge.kind.replace('_', ' ')}, {between(f.amount)}") for f in largest],
        title="Largest findings",
        unit="bytes",
        note="with the interval that holds the true number in 95 of 100 cases" if not scan.exact else "",
    )
    add_edges(page, [f.edge.as_json() for f in scan.found[:_EDGES]])
    if len(scan.found) > _EDGES:
        page.text(f"… and {len(scan.found) - _EDGES:,} more; --json FILE has all.", dim=True)
