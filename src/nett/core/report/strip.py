"""Hundreds of values in their order as thin bars: a whole checkpoint at one glance, one bar a tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nett.core.report.svg import WIDTH, frame, label, num, scale, tag, tick_text, ticks, title
from nett.core.report.words import Number, clean, finite, number, width

MOST_BARS = 320  # more values share a bar
_HEIGHT = 180


def strip(values: Mapping[str, Number] | Sequence[Sequence[Any]], *, name: str = "", unit: str = "") -> tuple[str, str]:
    """The chart of {name: value} or [(name, value)] in the given order, and a remark on the largest and the odd.

    Below the bars stand the layers, where the names carry a number and each layer's tensors are neighbours.
    """
    pairs = [(str(p[0]), p[1]) for p in (values.items() if isinstance(values, Mapping) else values)]
    numbers = [finite(v) for _, v in pairs]
    each = max(1, math.ceil(len(pairs) / MOST_BARS))
    low, high = scale(numbers, with_zero=True)
    marks = ticks(low, high, 4)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    texts = [tick_text(m, step, unit) for m in marks]
    left, top, right = max(width(t) for t in texts) + 12, 10.0, WIDTH - 8.0
    bottom = top + _HEIGHT
    wide = (right - left) / max(1, math.ceil(len(pairs) / each))

    def height(value: float) -> float:
        return bottom - (value - low) / (high - low) * _HEIGHT

    parts = []
    for mark, text in zip(marks, texts, strict=True):
        parts.append(tag("path", {"class": "grid", "d": f"M{num(left)} {num(height(mark))}H{num(right)}"}))
        parts.append(label(left - 6, height(mark) + 4, text, anchor="end", style="dim"))
    thick = min(40.0, wide * 0.8 if wide > 2 else wide)
    drawn, odd = [], []
    for i in range(0, len(pairs), each):
        x = left + (i // each + 0.5) * wide
        group = [(abs(v), j) for j, v in enumerate(numbers[i : i + each], i) if v is not None]
        if len(group) < len(pairs[i : i + each]):
            odd.append(f"M{num(x)} {num(top)}V{num(bottom)}")
        if group:
            biggest = max(group)[1]
            drawn.append(_bar(x, height(0.0), numbers[biggest] or 0.0, height, pairs[biggest], unit, tip=each == 1))
    parts.append(tag("g", {"class": "bar", "stroke-width": num(thick)}, *drawn) if drawn else "")
    if odd:
        parts.append(tag("path", {"class": "odd", "stroke-width": num(thick), "d": "".join(odd)}))
    parts.append(tag("path", {"class": "axis", "d": f"M{num(left)} {num(height(0.0))}H{num(right)}"}))
    parts += _layers([p[0] for p in pairs], left, wide / each, bottom)
    remark = _remark(pairs, numbers, each, unit)
    return frame(bottom + 40, name, remark, *parts), remark


def _bar(x: float, zero: float, value: float, height: Any, pair: tuple[str, Number], unit: str, *, tip: bool) -> str:
    end = height(value)
    if value and abs(end - zero) < 1:  # not nothing, so to be seen
        end = zero - 1 if value > 0 else zero + 1
    line = {"d": f"M{num(x)} {num(zero)}V{num(end)}"}
    return tag("path", line, title(f"{pair[0]}: {number(pair[1], unit)}")) if tip else tag("path", line)


def layer_of(name: str) -> tuple[str, int] | None:
    """(prefix, number) of the first whole number between dots: the layer that a tensor belongs to."""
    found = re.search(r"(?:^|\.)(\d{1,5})\.", name)
    return (name[: found.start(1)], int(found[1])) if found else None


def _layers(names: Sequence[str], left: float, wide: float, bottom: float) -> list[str]:
    runs: list[tuple[tuple[str, int], int]] = []
    last = None
    for i, text in enumerate(names):
        layer = layer_of(text)
        if layer is not None and layer != last:
            runs.append((layer, i))
        last = layer
    middle = left + wide * len(names) / 2
    if len(runs) < 2 or len({r[0] for r in runs}) < len(runs):
        return [label(middle, bottom + 20, "tensors in their order", anchor="middle", style="dim")]
    parts, free = [], -1e9
    for (_, number_of_layer), i in runs:
        x = left + i * wide
        if x >= free and x + width(str(number_of_layer)) <= WIDTH:
            parts.append(tag("path", {"class": "axis", "d": f"M{num(x)} {num(bottom)}v5"}))
            parts.append(label(x, bottom + 18, str(number_of_layer), style="dim"))
            free = x + width(str(number_of_layer)) + 12
    return [*parts, label(middle, bottom + 34, "layer", anchor="middle", style="dim")]


def _remark(pairs: Sequence[tuple[str, Number]], numbers: Sequence[float | None], each: int, unit: str) -> str:
    said = [f"{len(pairs):,} {'value' if len(pairs) == 1 else 'values'}."]
    if each > 1:
        said.append(f"Each bar is the largest of {each} neighbours.")
    ranked = sorted((i for i, v in enumerate(numbers) if v), key=lambda i: (-abs(numbers[i] or 0.0), i))[:3]
    if ranked:
        said.append("Largest: " + "; ".join(f"{clean(pairs[i][0])} {number(pairs[i][1], unit)}" for i in ranked) + ".")
    lost = [i for i, v in enumerate(numbers) if v is None]
    if lost:
        first = ", ".join(f"{clean(pairs[i][0])} ({number(pairs[i][1])})" for i in lost[:3])
        rest = f", … and {len(lost) - 3:,} more" if len(lost) > 3 else ""
        said.append(f"Not finite (dashed): {first}{rest}.")
    return " ".join(said)
