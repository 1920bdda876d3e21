"""One self-contained HTML page: text, tables and charts in the order they are added; no script, no network."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, final

from nett.core.errors import NettError
from nett.core.report.words import Code, Number, clean, is_number, words
from nett.core.staging import put_file

MOST_ROWS = 60  # of a table, before the rest is only counted
_MOST_CODE = 200  # lines
_MARKS = {"good": "✓", "bad": "✗", "plain": ""}


@final
class Page:
    """Collects blocks; :meth:`render` gives the HTML, the same for the same blocks.

    Everything given is text, never markup: it is escaped. Numbers that are NaN or infinite are said, not drawn.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle, self.footer = title, subtitle, ""
        self._blocks: list[dict[str, Any]] = []

    def _add(self, kind: str, **block: Any) -> None:
        self._blocks.append({"kind": kind, **block})

    def text(self, text: str, *, dim: bool = False) -> None:
        """A paragraph."""
        self._add("text", text=text, style="dim" if dim else "")

    def heading(self, text: str) -> None:
        """The start of a section; also an entry of the contents."""
        taken = {b["id"] for b in self._blocks if b["kind"] == "heading"}
        bare = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
        name, again = bare, 2
        while name in taken:
            name, again = f"{bare}-{again}", again + 1
        self._add("heading", text=text, id=name)

    def contents(self) -> None:
        """Links to all sections, here; nothing where there are no more than three."""
        self._add("contents")

    def verdict(self, text: str, style: Literal["good", "bad", "plain"] = "plain") -> None:
        """The sentence that says what came out."""
        self._add("verdict", text=text, style=style, mark=_MARKS[style])

    def code(self, text: str) -> None:
        """Commands or a file, in the fixed-width face."""
        lines = text.rstrip("\n").split("\n")
        more = [f"… and {len(lines) - _MOST_CODE:,} more lines"] if len(lines) > _MOST_CODE else []
        self._add("code", text="\n".join(lines[:_MOST_CODE] + more))

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str = "", most: int = MOST_ROWS
    ) -> None:
        """Rows under headers; numbers to the right with thousands separated; rows past ``most`` only counted.

        A value may be text, :class:`Code`, a number, a boolean, None or a list.
        """
        self._add(**_table(headers, rows, caption, most))

    def key_values(self, mapping: Mapping[str, Any]) -> None:
        """Names with their values, one a row."""
        rows = [[_cell(str(k), head=True), _cell(v)] for k, v in mapping.items()]
        for row in rows:
            row[1]["style"] = ""  # one column holds values of all kinds: to the left they read better
        self._add("table", headers=[], right=[], rows=rows, columns=2, more="", caption="")

    def bars(self, rows: Sequence[Sequence[Any]], *, title: str = "", unit: str = "", note: str = "") -> None:
        """Horizontal bars of (label, value) or (label, value, note); unit ``bytes`` is shown as kB, MB, GB."""
        from nett.core.report.bars import bars

        self._figure(title, note, bars(rows, name=title, unit=unit) if rows else "")

    def grouped_bars(
        self,
        labels: Sequence[str],
        series: Mapping[str, Sequence[Number]],
        *,
        title: str = "",
        unit: str = "",
        note: str = "",
    ) -> None:
        """For each label one bar a series; say in ``note`` which way is better."""
        from nett.core.report.bars import grouped_bars

        self._figure(title, note, grouped_bars(labels, series, name=title, unit=unit) if labels and series else "")

    def lines(
        self,
        series: Mapping[str, Sequence[Sequence[Any]]],
        *,
        title: str = "",
        xlabel: str = "",
        ylabel: str = "",
        note: str = "",
    ) -> None:
        """Lines through (x, y), or (x, y, low, high) with bands of error; the numbers also as a folded table."""
        from nett.core.report.lines import lines

        if not any(series.values()):
            return self._figure(title, note, "")
        svg, remark = lines(series, name=title, xlabel=xlabel, ylabel=ylabel)
        headers = ["series", xlabel or "x", ylabel or "y", "low", "high"]
        if all(len(p) < 4 for run in series.values() for p in run):
            headers = headers[:3]
        rows = [[name, *p, None, None][: len(headers)] for name, run in series.items() for p in run]
        return self._figure(title, note, svg, remark, _table(headers, rows, "", 40))

    def heat(
        self,
        rows: Sequence[str],
        columns: Sequence[str],
        values: Sequence[Sequence[Any]],
        *,
        title: str = "",
        note: str = "",
    ) -> None:
        """A matrix ``values[row][column]`` in colours."""
        from nett.core.report.heat import heat

        svg, remark = heat(rows, columns, values, name=title) if rows and columns else ("", "")
        self._figure(title, note, svg, remark)

    def figure_strip(
        self,
        values: Mapping[str, Number] | Sequence[Sequence[Any]],
        *,
        title: str = "",
        unit: str = "",
        note: str = "",
    ) -> None:
        """Thin bars for {tensor: value} or [(tensor, value)], hundreds of them, in the order given."""
        from nett.core.report.strip import strip

        if len(values) <= 16:  # few enough for their names to stand beside them
            self.bars(
                list(values.items()) if isinstance(values, Mapping) else values, title=title, unit=unit, note=note
            )
            return
        svg, remark = strip(values, name=title, unit=unit)
        return self._figure(title, note, svg, remark)

    def drawing(self, svg: str, *, title: str = "", note: str = "") -> None:
        """A picture that was drawn with :mod:`nett.core.report.svg`."""
        self._figure(title, note, svg)

    def _figure(self, title: str, note: str, svg: str, remark: str = "", data: dict[str, Any] | None = None) -> None:
        if not svg:
            self.text(f"{title}: nothing to show." if title else "Nothing to show.", dim=True)
            return
        self._add("figure", title=title, note=note, svg=svg, remark=remark, data=data)

    def render(self) -> str:
        """The whole page as HTML."""
        contents = [b for b in self._blocks if b["kind"] == "heading"]
        page: str = _template().render(
            title=self.title, subtitle=self.subtitle, footer=self.footer, blocks=self._blocks, contents=contents
        )
        return page

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page at ``path``, whole or not at all; its folder must exist."""
        target = Path(path)
        try:
            put_file(target, self.render().encode())
        except OSError as error:
            raise NettError(f"the report cannot be written: {error.strerror}", where=target) from error
        return target


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    def made_safe(value: Any) -> Any:
        return value if hasattr(value, "__html__") else clean(value)

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=made_safe
    )
    source = resources.files("nett.core.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]], caption: str, most: int) -> dict[str, Any]:
    shown = [[_cell(v) for v in row] for row in rows[:most]]
    right = [
        bool(column := [row[i] for row in rows if i < len(row) and row[i] is not None]) and all(map(is_number, column))
        for i in range(len(headers))
    ]
    for row in shown:
        for cell, aligned in zip(row, right, strict=False):
            if aligned:
                cell["style"] = "n"
        row += [_cell("") for _ in range(len(headers) - len(row))]
    more = f"… and {len(rows) - most:,} more" if len(rows) > most else ""
    return {
        "kind": "table",
        "headers": list(headers),
        "right": right,
        "rows": shown,
        "columns": max(1, len(headers)),
        "more": more,
        "caption": caption,
    }


def _cell(value: Any, *, head: bool = False) -> dict[str, Any]:
    """A value as the template shows it: its text, its class, whether it is set as code."""
    style, text = "", words(value)
    if isinstance(value, Code):  # a short command and a hash stay on one line; what is longer may break
        style = "whole" if len(text) <= (26 if " " in text else 64) else "long"
    elif isinstance(value, str):
        style = {"✓": "good", "✗": "bad"}.get(text[:1], "")
    elif is_number(value):
        style = "n"
    return {"tag": "th" if head else "td", "text": text, "style": style, "code": isinstance(value, Code)}
