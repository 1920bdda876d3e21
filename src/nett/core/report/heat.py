"""A matrix as coloured cells: the stronger the colour, the larger the value; a second colour below zero."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from nett.core.report.svg import WIDTH, frame, label, num, tag, title
from nett.core.report.words import clean, finite, number, width

MOST_CELLS = 2400
_MOST_ROWS, _MOST_COLUMNS = 120, 120
_LEVELS = 16
_TOLD = 200  # cells that get their own tooltip; more would make the page heavy


def heat(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[Any]], *, name: str = ""
) -> tuple[str, str]:
    """The chart of ``values[row][column]``, and a remark on what was left out (or "").

    A value that is missing or not finite is a crossed cell.
    """
    across = min(len(columns), _MOST_COLUMNS)
    down = min(len(rows), len(values), _MOST_ROWS, max(1, MOST_CELLS // max(1, across)))
    cells = [[finite(values[r][c]) if c < len(values[r]) else None for c in range(across)] for r in range(down)]
    good = [v for row in cells for v in row if v is not None]
    most = max((abs(v) for v in good), default=0.0) or 1.0
    left = min(260.0, max([width(clean(t)) for t in rows[:down]] or [0.0])) + 10
    tall = 26 if down <= 16 else 18 if down <= 40 else 13 if down <= 60 else 7
    names = [clean(t) for t in columns[:across]]
    longest = max([width(t) for t in names] or [0.0])
    wide, top = min(110.0, (WIDTH - left - 4) / max(1, across)), 24.0
    turned = longest > wide - 6
    if turned:  # names rise to the right: above the cells and past the last of them
        longest = min(longest, 165.0)
        wide, top = min(110.0, (WIDTH - left - longest * 0.58 - 8) / max(1, across)), longest * 0.82 + 16
    texts = [[number(v) for v in row] for row in cells]
    written = tall >= 18 and all(width(t, 11) <= wide - 4 for row in texts for t in row)
    strongest = 0.5 if written else 1.0  # ink must stay readable on the strongest colour
    parts = _column_names(names, left, wide, top, turned)
    every = 1 if tall >= 13 else 2
    parts += [
        label(left - 8, top + r * tall + tall / 2 + 4, rows[r], anchor="end", room=left - 10)
        for r in range(0, down, every)
    ]
    runs: dict[tuple[int, int], list[str]] = defaultdict(list)
    crosses, tips, words = [], [], []
    for r, row in enumerate(cells):
        for c, value in enumerate(row):
            x, y = left + c * wide, top + r * tall
            if value is None:
                crosses.append(f"M{num(x + 3)} {num(y + 3)}L{num(x + wide - 3)} {num(y + tall - 3)}")
                crosses.append(f"M{num(x + wide - 3)} {num(y + 3)}L{num(x + 3)} {num(y + tall - 3)}")
            else:
                level = math.ceil(abs(value) / most * _LEVELS)
                runs[0 if value >= 0 else 1, level].append(
                    f"M{num(x)} {num(y)}h{num(wide - 1)}v{tall - 1}h{num(1 - wide)}z"
                )
            if across * down <= _TOLD:
                tip = f"{rows[r]}, {columns[c]}: {number(values[r][c]) if c < len(values[r]) else 'missing'}"
                box = {"x": x, "y": y, "width": wide, "height": float(tall), "class": "clear"}
                tips.append(tag("rect", box, title(tip)))
            if written and value is not None:
                words.append(label(x + wide / 2, y + tall / 2 + 4, texts[r][c], anchor="middle", style="cell"))
    for (below, level), paths in sorted(runs.items()):
        strength = f"{0.04 + (strongest - 0.04) * level / _LEVELS:.2f}"
        parts.append(tag("path", {"class": f"f{below}", "fill-opacity": strength, "d": "".join(paths)}))
    if crosses:
        parts.append(tag("path", {"class": "cross", "d": "".join(crosses)}))
    bottom = top + down * tall
    parts += words + tips
    if good:
        parts.append(_key(left, bottom + 14, min(good), max(good), most, strongest))
    spoken = f"{down} rows, {across} columns" + (f", from {number(min(good))} to {number(max(good))}" if good else "")
    return frame(bottom + 34, name, spoken, *parts), _remark(rows, columns, down, across, len(good))


def _column_names(names: Sequence[str], left: float, wide: float, top: float, turned: bool) -> list[str]:
    parts = []
    every = max(1, math.ceil(14 / wide)) if turned else 1
    for c in range(0, len(names), every):
        x = left + (c + 0.5) * wide
        if turned:
            turn = f"translate({num(x + 4)} {num(top - 6)}) rotate(-55)"
            parts.append(tag("g", {"transform": turn}, label(0, 0, names[c], room=(top - 16) / 0.82)))
        else:
            parts.append(label(x, top - 8, names[c], anchor="middle"))
    return parts


def _key(x: float, y: float, low: float, high: float, most: float, strongest: float) -> str:
    """The colours from the lowest to the highest value, with both numbers."""
    parts = [label(x, y + 10, number(low), style="dim")]
    x += width(number(low)) + 8
    for i in range(9):
        value = low + (high - low) * i / 8
        strength = f"{0.04 + (strongest - 0.04) * abs(value) / most:.2f}"
        box = {"x": x + i * 14.0, "y": y, "width": "14", "height": "12", "class": f"f{0 if value >= 0 else 1}"}
        parts.append(tag("rect", {**box, "fill-opacity": strength}))
    parts.append(label(x + 9 * 14 + 8, y + 10, number(high), style="dim"))
    return "".join(parts)


def _remark(rows: Sequence[str], columns: Sequence[str], down: int, across: int, good: int) -> str:
    said = []
    if down * across > good:
        said.append(f"{down * across - good:,} crossed: no finite value.")
    if len(rows) > down:
        said.append(f"… and {len(rows) - down:,} more rows.")
    if len(columns) > across:
        said.append(f"… and {len(columns) - across:,} more columns.")
    return " ".join(said)
