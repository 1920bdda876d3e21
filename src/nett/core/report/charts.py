"""Charts that a receipt brings along (its key ``charts``): records of what to draw, of any room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nett.core.report.page import Page
from nett.core.report.records import records, text_of

_WORDS = ("title", "xlabel", "ylabel", "unit", "note")


def add(page: Page, receipt: Mapping[str, Any]) -> None:
    """Draw ``{"kind": "lines", "series": {name: [[x, y], …]}}``, ``{"kind": "bars", "rows": [[label, value], …]}`` and
    ``{"kind": "grouped_bars", "labels": […], "series": {name: […]}}``; with title, note, unit and axis labels."""
    drawn = [c for c in records(receipt, "charts") if c.get("kind") in ("lines", "bars", "grouped_bars")]
    if not drawn:
        return
    page.heading("What was looked at")
    for chart in drawn:
        words = {w: text_of(chart[w]) for w in _WORDS if chart.get(w)}
        if chart["kind"] == "lines":
            page.lines(chart.get("series") or {}, **{w: t for w, t in words.items() if w != "unit"})
        elif chart["kind"] == "bars":
            page.bars(chart.get("rows") or [], **{w: t for w, t in words.items() if not w.endswith("label")})
        else:
            words = {w: t for w, t in words.items() if not w.endswith("label")}
            page.grouped_bars(chart.get("labels") or [], chart.get("series") or {}, **words)
