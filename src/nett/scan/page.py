"""What a scan found, as a page with pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nett.core.report import Page
from nett.core.report.words import Code
from nett.scan.engine import Scan

LARGEST = 20  # findings that are drawn


def commands(found: Scan) -> list[str]:
    """The commands of all findings, each once, in the order of the findings."""
    return list(dict.fromkeys(e.command for e in found.edges if e.command))


def by_checkpoint(found: Scan) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Probe -> (headers, rows) of the numbers that it gives for each checkpoint."""
    paths = [a["path"] for a in found.assets]
    tables = {}
    for run in found.probes:
        figures = run.findings.figures
        rows = {p: figures[p] for p in paths if isinstance(figures.get(p), Mapping)}
        names = list(dict.fromkeys(n for row in rows.values() for n, v in row.items() if isinstance(v, int | float)))
        if names:
            tables[run.name] = (["checkpoint", *names], [[p, *(row.get(n) for n in names)] for p, row in rows.items()])
    return tables


def scan_page(found: Scan, summary: str) -> Page:
    """The page of ``nett scan --html``."""
    page = Page("nett scan", ", ".join(a["path"] for a in found.assets[:4]) + (" …" if len(found.assets) > 4 else ""))
    page.verdict(summary)
    page.contents()
    page.heading("Findings")
    page.bars(
        [(e.target, e.bytes_freed, e.kind) for e in found.edges[:LARGEST]], title="Largest findings", unit="bytes"
    )
    known = commands(found)
    page.table(
        ["bytes", "guarantee", "error", "finding", "command", "target"],
        [
            [e.bytes_freed, e.guarantee, e.error, e.kind, known.index(e.command) + 1 if e.command else None, e.target]
            for e in found.edges
        ],
    )
    if known:
        page.heading("Commands")
        page.code("\n".join(f"[{number}] {text}" for number, text in enumerate(known, start=1)))
    for probe, (headers, rows) in by_checkpoint(found).items():
        page.heading(probe.replace("_", " ").capitalize())
        page.table([h.replace("_", " ") for h in headers], rows)
    page.heading("Checkpoints and probes")
    page.table(
        ["checkpoint", "format", "tensors", "parameters", "bytes"],
        [[Code(a["path"]), a["format"], a["tensors"], a["parameters"], a["bytes"]] for a in found.assets],
    )
    page.table(["probe", "seconds", "bytes read"], [[p.name, round(p.seconds, 3), p.bytes_read] for p in found.probes])
    return page
