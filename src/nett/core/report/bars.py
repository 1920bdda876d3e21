"""Horizontal bars, alone or in groups: the number stands at the end of each bar, so that no axis is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nett.core.report.svg import COLOURS, WIDTH, frame, label, legend, num, tag, title
from nett.core.report.words import Number, clean, finite, number, width

MOST = 40  # bars, or groups of bars, before the rest is only counted
_MOST_SERIES = COLOURS
_GAP = 8


def bars(rows: Sequence[Sequence[Any]], *, name: str = "", unit: str = "") -> str:
    """One bar for each (label, value) or (label, value, note)."""
    shown = [(str(r[0]), r[1], str(r[2]) if len(r) > 2 and r[2] else "") for r in rows[:MOST]]
    groups = [(text, [(value, note, 0)]) for text, value, note in shown]
    return _draw(groups, [], name, unit, len(rows) - len(shown), thick=18)


def grouped_bars(
    labels: Sequence[str], series: Mapping[str, Sequence[Number]], *, name: str = "", unit: str = ""
) -> str:
    """A group for each label, in it a bar for each series; a series may be shorter than the labels."""
    names = list(series)[:_MOST_SERIES]
    groups = [
        (str(text), [(series[s][i], "", k) for k, s in enumerate(names) if i < len(series[s])])
        for i, text in enumerate(labels[:MOST])
    ]
    left_out = [f"series {s}" for s in list(series)[_MOST_SERIES:]]
    return _draw(groups, names, name, unit, max(0, len(labels) - MOST), thick=14, also=left_out)


def _draw(
    groups: Sequence[tuple[str, Sequence[tuple[Number, str, int]]]],
    names: Sequence[str],
    name: str,
    unit: str,
    more: int,
    *,
    thick: int,
    also: Sequence[str] = (),
) -> str:
    values = [finite(value) for _, group in groups for value, _, _ in group]
    most = max((abs(v) for v in values if v is not None), default=0.0) or 1.0
    shares = [v / most for v in values if v is not None]
    low, high = min([0.0, *shares]), max([0.0, *shares])
    span = (high - low) or 1.0
    left = min(320.0, max([width(clean(text)) for text, _ in groups] or [0.0])) + 10
    said = [number(value, unit) + (f"  {clean(note)}" if note else "") for _, g in groups for value, note, _ in g]
    right = min(360.0, max([width(text) for text in said] or [0.0])) + _GAP
    plot = WIDTH - left - right - 4
    zero = left - low / span * plot
    marks = [
        tag("rect", {"x": "-8", "y": "-6", "width": "16", "height": "12", "class": f"f{k}"}) for k in range(len(names))
    ]
    keys, top = legend(names, marks, left, WIDTH) if len(names) > 1 else ("", 0.0)
    parts, y = [keys], top + 4
    begin = y
    spoken = iter(said)
    told: list[str] = []
    for text, group in groups:
        tall = thick * max(1, len(group))
        parts.append(label(left - 10, y + tall / 2 + 4, text, anchor="end", room=left - 10))
        for value, _, colour in group:
            words = next(spoken)
            series = f" {names[colour]}" if len(names) > 1 else ""
            told.append(f"{text}{series} {words}")
            parts.append(
                _bar(
                    finite(value), words, zero, plot / span / most, y, thick, colour, f"{text}{series}: {words}", right
                )
            )
            y += thick
        y += 10 if thick < 18 or len(groups) > 12 else 12
    parts.append(tag("path", {"class": "axis", "d": f"M{num(zero)} {num(begin - 3)}V{num(y - 5)}"}))
    if more or also:
        hidden = ([f"{more:,} more"] if more else []) + list(also)
        parts.append(label(left, y + 12, "… and " + ", ".join(hidden), style="dim", room=WIDTH - left))
        y += 18
    return frame(y, name, "; ".join(told), *parts)


def _bar(
    value: float | None,
    words: str,
    zero: float,
    unit_wide: float,
    y: float,
    thick: int,
    colour: int,
    tip: str,
    room: float,
) -> str:
    """A bar from the zero line and its words behind its right end; words alone where there is no finite value."""
    if value is None:
        return label(zero + _GAP, y + thick / 2 + 4, words, style="bad", room=room)
    long = abs(value) * unit_wide
    long = max(long, 1.0) if value else 0.0
    x = zero if value >= 0 else zero - long
    shape = {"x": x, "y": y + 1.0, "width": long, "height": thick - 2.0, "class": f"f{colour}"}
    end = zero + long if value > 0 else zero
    drawn = tag("rect", shape, title(tip)) if value else ""
    return drawn + label(end + _GAP, y + thick / 2 + 4, words, room=room)
