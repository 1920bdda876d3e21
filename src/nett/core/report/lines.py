"""Lines over a numeric axis, with bands (or whiskers) between a low and a high value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from nett.core.report.svg import COLOURS, WIDTH, frame, label, legend, num, scale, tag, tick_text, ticks, title
from nett.core.report.words import clean, finite, number, width

MOST_POINTS = 400  # of one series; more are thinned evenly
_MOST_SERIES = 16
_HEIGHT = 300
_MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5l5 9h-10z",
    "M0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
)
_DASHES = ("", "7 4", "2 4", "9 4 2 4")
Point: TypeAlias = tuple[float, float, float | None, float | None]  # x, y, low, high


def lines(
    series: Mapping[str, Sequence[Sequence[Any]]], *, name: str = "", xlabel: str = "", ylabel: str = ""
) -> tuple[str, str]:
    """The chart of {name: [(x, y) or (x, y, low, high)]}, and a remark on what could not be drawn (or "").

    A point whose x or y is not finite breaks its line.
    """
    given = {str(k): list(v) for k, v in list(series.items())[:_MOST_SERIES]}
    drawn = {k: [_point(p) for p in _thinned(v)] for k, v in given.items()}
    points = [p for run in drawn.values() for p in run if p is not None]
    x_low, x_high = scale([p[0] for p in points], with_zero=False)
    y_low, y_high = scale([v for p in points for v in p[1:]], with_zero=False)
    room = (y_high - y_low) * 0.05
    y_low, y_high = (0.0 if 0 <= y_low <= room else y_low - room), y_high + room
    marks = [_mark(k) for k in range(len(given))]
    keys, top = legend(list(given), marks, 60, WIDTH) if len(given) > 1 else ("", 4.0)
    y_ticks, x_ticks = ticks(y_low, y_high), ticks(x_low, x_high, 8)
    y_texts = _texts(y_ticks)
    left = max([width(t) for t in y_texts] or [0.0]) + (32 if ylabel else 14)
    top += 10
    bottom, right = top + _HEIGHT, WIDTH - 24.0

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return left + across * (right - left), bottom - up * _HEIGHT

    parts = [keys]
    for value, text in zip(y_ticks, y_texts, strict=True):
        y = at(x_low, value)[1]
        parts.append(tag("path", {"class": "grid", "d": f"M{num(left)} {num(y)}H{num(right)}"}))
        parts.append(label(left - 6, y + 4, text, anchor="end", style="dim"))
    for value, text in zip(x_ticks, _texts(x_ticks), strict=True):
        x = at(value, y_low)[0]
        parts.append(tag("path", {"class": "axis", "d": f"M{num(x)} {num(bottom)}v5"}))
        parts.append(label(x, bottom + 18, text, anchor="middle", style="dim"))
    parts.append(tag("path", {"class": "axis", "d": f"M{num(left)} {num(top)}V{num(bottom)}H{num(right)}"}))
    if xlabel:
        parts.append(label((left + right) / 2, bottom + 38, xlabel, anchor="middle", room=right - left))
    if ylabel:
        turn = f"translate(14 {num((top + bottom) / 2)}) rotate(-90)"
        parts.append(tag("g", {"transform": turn}, label(0, 0, ylabel, anchor="middle", room=_HEIGHT)))
    for k, (text, run) in enumerate(drawn.items()):
        parts += _series(k, text, run, at)
    if not points:
        parts.append(label((left + right) / 2, top + _HEIGHT / 2, "no finite values", anchor="middle", style="bad"))
    spoken = "; ".join(_spoken(text, run) for text, run in drawn.items())
    return frame(bottom + (46 if xlabel else 24), name, spoken, *parts), _remark(series, given, drawn)


def _point(point: Sequence[Any]) -> Point | None:
    x, y = finite(point[0]), finite(point[1])
    if x is None or y is None:
        return None
    low, high = (finite(point[2]), finite(point[3])) if len(point) > 3 else (None, None)
    return x, y, low, high


def _thinned(points: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
    if len(points) <= MOST_POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def _texts(marks: Sequence[float]) -> list[str]:
    step = marks[1] - marks[0] if len(marks) > 1 else abs(marks[0]) or 1.0 if marks else 1.0
    return [tick_text(m, step) for m in marks]


def _dash(k: int) -> dict[str, object]:
    pattern = _DASHES[k // COLOURS % len(_DASHES)] or _DASHES[k % len(_DASHES)]
    return {"stroke-dasharray": pattern} if pattern else {}


def _mark(k: int) -> str:
    line = tag("path", {"class": f"line k{k % COLOURS}", "d": "M-10 0h22", **_dash(k)})
    return line + tag("path", {"class": f"f{k % COLOURS}", "d": _MARKS[k % len(_MARKS)]})


def _series(k: int, text: str, run: Sequence[Point | None], at: Any) -> list[str]:
    """Bands or whiskers, then the line, then the marks with their numbers."""
    colour, parts = k % COLOURS, []
    for piece in _unbroken(run):
        band = [(x, low, high) for x, _, low, high in piece if low is not None and high is not None]
        if len(band) == len(piece) > 1:
            upper = [at(x, high) for x, _, high in band]
            lower = [at(x, low) for x, low, _ in reversed(band)]
            parts.append(tag("path", {"class": f"band f{colour}", "d": _path(upper + lower) + "z"}))
        else:
            for x, low, high in band:
                (px, a), (_, b) = at(x, low), at(x, high)
                d = f"M{num(px)} {num(a)}V{num(b)}M{num(px - 4)} {num(a)}h8M{num(px - 4)} {num(b)}h8"
                parts.append(tag("path", {"class": f"whisker k{colour}", "d": d}))
        if len(piece) > 1:
            path = _path([at(x, y) for x, y, _, _ in piece])
            parts.append(tag("path", {"class": f"line k{colour}", "d": path, **_dash(k)}))
    lone = {id(p[0]) for p in _unbroken(run) if len(p) == 1}
    crowded = len(run) > 60
    for point in run:
        if point is not None and (not crowded or id(point) in lone):
            px, py = at(point[0], point[1])
            where = f"translate({num(px)} {num(py)})"
            said = f"{text}: {number(point[1])} at {number(point[0])}"
            mark = {"class": f"f{colour}", "transform": where, "d": _MARKS[k % len(_MARKS)]}
            parts.append(tag("path", mark, title(said)))
    return parts


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{num(x)} {num(y)}" for x, y in points)


def _unbroken(run: Sequence[Point | None]) -> list[list[Point]]:
    pieces: list[list[Point]] = [[]]
    for point in run:
        if point is None:
            pieces.append([])
        else:
            pieces[-1].append(point)
    return [p for p in pieces if p]


def _spoken(text: str, run: Sequence[Point | None]) -> str:
    good = [p for p in run if p is not None]
    if not good:
        return f"{text}, no finite values"
    first, last = good[0], good[-1]
    begin = f"{clean(text)} {number(first[1])} at {number(first[0])}"
    return begin if len(good) == 1 else f"{begin} to {number(last[1])} at {number(last[0])}"


def _remark(series: Mapping[str, Any], given: Mapping[str, list[Any]], drawn: Mapping[str, list[Point | None]]) -> str:
    said = []
    broken = sum(p is None for run in drawn.values() for p in run)
    if broken:
        said.append(f"{broken:,} {'point is' if broken == 1 else 'points are'} not finite and left out.")
    if any(len(v) > MOST_POINTS for v in given.values()):
        said.append(f"Series of more than {MOST_POINTS} points are thinned evenly to {MOST_POINTS}.")
    if len(series) > len(given):
        said.append(f"… and {len(series) - len(given):,} more series.")
    return " ".join(said)
