"""Horizontal bars, alone or in groups: the number stands at the end of each bar, so that no axis is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from nett.core.report.svg import COLOURS, WIDTH, frame, label, legend, num, tag, title
from nett.core.report.words import Number, clean, elided, finite, number, width

MOST = 40  # bars, or groups of bars, before the rest is only counted
_GAP = 8


class _Bar(NamedTuple):
    value: Number
    words: str  # the value as people read it
    note: str
    series: int


def bars(rows: Sequence[Sequence[Any]], *, name: str = "", unit: str = "") -> str:
    """One bar for each (label, value) or (label, value, note)."""
    groups = [
        (str(r[0]), [_Bar(r[1], number(r[1], unit), clean(r[2]) if len(r) > 2 and r[2] else "", 0)])
        for r in rows[:MOST]
    ]
    more = [f"{len(rows) - MOST:,} more"] if len(rows) > MOST else []
    return _draw(groups, [], name, more, thick=18)


def grouped_bars(
    labels: Sequence[str], series: Mapping[str, Sequence[Number]], *, name: str = "", unit: str = ""
) -> str:
    """A group for each label, in it a bar for each series; a series may be shorter than the labels."""
    names = list(series)[:COLOURS]
    runs = [(k, list(series[s])) for k, s in enumerate(names)]
    groups = [
        (str(text), [_Bar(run[i], number(run[i], unit), "", k) for k, run in runs if i < len(run)])
        for i, text in enumerate(labels[:MOST])
    ]
    more = [f"{len(labels) - MOST:,} more"] if len(labels) > MOST else []
    return _draw(groups, names, name, more + [f"series {s}" for s in list(series)[COLOURS:]], thick=14)


def _draw(
    groups: Sequence[tuple[str, Sequence[_Bar]]], names: Sequence[str], name: str, more: Sequence[str], *, thick: int
) -> str:
    drawn = [bar for _, group in groups for bar in group]
    values = [v for v in (finite(bar.value) for bar in drawn) if v is not None]
    most = max(map(abs, values), default=0.0) or 1.0
    low, high = min([0.0, *(v / most for v in values)]), max([0.0, *(v / most for v in values)])
    left = min(320.0, max([width(clean(text)) for text, _ in groups] or [0.0])) + 10
    right = min(360.0, max([width(bar.words) + width(bar.note) for bar in drawn] or [0.0]) + _GAP)
    scale = (WIDTH - left - right - _GAP - 4) / ((high - low) or 1.0)
    zero = left - low * scale
    box = {"x": "-8", "y": "-6", "width": "16", "height": "12"}
    marks = [tag("rect", {**box, "class": f"f{k}"}) for k in range(len(names))]
    keys, top = legend(names, marks, left, WIDTH) if len(names) > 1 else ("", 0.0)
    parts, told, y = [keys], [], top + 4
    for text, group in groups:
        tall = thick * max(1, len(group))
        parts.append(label(left - 10, y + tall / 2 + 4, text, anchor="end", room=left - 10))
        for bar in group:
            whose = f"{text} {names[bar.series]}" if len(names) > 1 else text
            told.append(f"{whose}: {bar.words}" + (f" ({bar.note})" if bar.note else ""))
            value = finite(bar.value)
            long = 0.0 if value is None else value / most * scale
            if value:
                long = max(abs(long), 1.0)  # not nothing, so to be seen
                x = zero if value > 0 else zero - long
                shape = {"x": x, "y": y + 1.0, "width": long, "height": thick - 2.0, "class": f"f{bar.series}"}
                parts.append(tag("rect", shape, title(told[-1])))
            parts.append(_words(bar, zero + (long if value and value > 0 else 0.0) + _GAP, y + thick / 2 + 4, right))
            y += thick
        y += 10
    parts.append(tag("path", {"class": "axis", "d": f"M{num(zero)} {num(top + 1)}V{num(y - 7)}"}))
    if more:
        parts.append(label(left, y + 10, "… and " + ", ".join(more), style="dim", room=WIDTH - left))
        y += 18
    return frame(y, name, "; ".join(told), *parts)


def _words(bar: _Bar, x: float, y: float, room: float) -> str:
    """The value, then its note, fainter."""
    style = "bad" if finite(bar.value) is None and bar.value is not None else ""
    if not bar.note:
        return label(x, y, bar.words, style=style, room=room)
    note = elided(bar.note, max(20.0, room - _GAP - width(bar.words)))
    aside = tag("tspan", {"class": "dim", "dx": "8"}, escape(note), title(bar.note) if note != bar.note else "")
    attributes = {"x": x, "y": y} | ({"class": style} if style else {})
    return tag("text", attributes, escape(bar.words), aside)
