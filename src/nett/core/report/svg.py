"""What every chart is drawn with: elements with escaped text, axes with round numbers, a frame that can be read out.

A chart is one string of SVG, 960 units wide, coloured by classes of the page's style sheet: ``f0``..``f7`` fill and
``k0``..``k7`` draw with the colour of a series, ``ink``, ``dim``, ``grid`` and ``bad`` are the page's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from nett.core.report.words import Number, clean, elided, finite, number, size, width

WIDTH = 960
COLOURS = 8


def num(value: float) -> str:
    """A coordinate: one decimal at most."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def tag(name: str, attributes: Mapping[str, object], *inside: str) -> str:
    """One element; attribute values are escaped here, ``inside`` is SVG already."""
    told = "".join(
        f' {key}="{num(value) if isinstance(value, float) else escape(clean(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{told}>{''.join(inside)}</{name}>" if inside else f"<{name}{told}/>"


def title(text: str) -> str:
    """What a pointer over the element shows and a screen reader says."""
    return f"<title>{escape(clean(text))}</title>"


def label(x: float, y: float, text: str, *, anchor: str = "start", style: str = "", room: float = 1e9) -> str:
    """Text with its base line at ``y``; elided to ``room``, then whole in its tooltip."""
    text = clean(text)
    short = elided(text, room)
    attributes: dict[str, object] = {"x": float(x), "y": float(y)}
    if anchor != "start":
        attributes["text-anchor"] = anchor
    if style:
        attributes["class"] = style
    return tag("text", attributes, escape(short), title(text) if short != text else "")


def frame(height: float, name: str, description: str, *inside: str) -> str:
    """The chart as one image with a name and, for those who cannot see it, its figures in words."""
    spoken = clean(description)
    spoken = spoken if len(spoken) <= 400 else spoken[:399] + "…"
    attributes = {
        "viewBox": f"0 0 {WIDTH} {math.ceil(height)}",
        "role": "img",
        "aria-label": f"{name}: {spoken}" if name and spoken else name or spoken or "chart",
    }
    return tag("svg", attributes, title(name or "chart"), *inside)


def legend(names: Sequence[str], marks: Sequence[str], left: float, right: float) -> tuple[str, float]:
    """Names of the series in rows, each after its mark (SVG around the origin); also the height they take."""
    parts: list[str] = []
    x, y = left, 14.0
    for name, mark in zip(names, marks, strict=True):
        wide = 28 + min(width(clean(name)), right - left - 28)
        if x > left and x + wide > right:
            x, y = left, y + 20
        parts.append(tag("g", {"transform": f"translate({num(x + 8)} {num(y - 4)})"}, mark))
        parts.append(label(x + 26, y, name, room=right - left - 28))
        x += wide + 16
    return "".join(parts), (y + 8 if names else 0.0)


def scale(values: Sequence[Number], *, with_zero: bool) -> tuple[float, float]:
    """The lowest and highest value that an axis has to hold; never of no length, always finite."""
    good = [v for v in map(finite, values) if v is not None] or [0.0]
    low, high = min(good), max(good)
    if with_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all equal, or so near that an axis could not tell
        around = abs(high) * 0.05 or 1.0
        low, high = (low, low + 1.0) if with_zero and low == 0 else (low - around, high + around)
    return low, high


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) between ``low`` and ``high``, some ``about`` of them."""
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= rough), 10 * power)
    first = math.ceil(low / step - 1e-9)
    marks = [(first + i) * step for i in range(2 * about + 4)]
    return [m for m in marks if m <= high + step * 1e-9]


def tick_text(value: float, step: float, unit: str = "") -> str:
    """A tick's number with as many decimals as its neighbours need."""
    if unit == "bytes":
        return size(value) if value else "0"
    if value == 0:
        return "0"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(value) >= 1e7 or digits > 5:
        return number(value)
    text = f"{value:,.{digits + 1}f}"
    return (text[:-1] if text.endswith("0") else text).removesuffix(".").replace("-", "−")
