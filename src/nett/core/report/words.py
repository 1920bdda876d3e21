"""Numbers and names as people read them, and text made safe to stand in a page."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, TypeAlias, final

Number: TypeAlias = Any  # a real number (NumPy's included) or None
_LARGEST, _SMALLEST = 1e300, 1e-300  # beyond these, sums and steps of an axis would overflow or vanish
# Control characters are illegal in XML, lone surrogates in UTF-8, and bidirectional marks make text lie.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


@final
class Code(str):
    """Words to set in the fixed-width face: commands, paths, hashes."""

    __slots__ = ()


def clean(text: object) -> str:
    """``text`` without the characters that a page cannot hold."""
    return _UNSAFE.sub("\ufffd", str(text))


def finite(value: Number) -> float | None:
    """``value`` as a float that a chart can place, or None (NaN, infinite, missing, not a number)."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(number) or abs(number) > _LARGEST:
        return None
    return 0.0 if abs(number) < _SMALLEST else number


def is_number(value: object) -> bool:
    """Whether ``value`` is a number to be right-aligned (NumPy scalars too; booleans not)."""
    if isinstance(value, int | float):
        return not isinstance(value, bool)
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return kind in ("i", "u", "f") and getattr(value, "ndim", 1) == 0


def number(value: Number, unit: str = "") -> str:
    """Thousands separated; four significant digits after that; ``bytes`` as MB and GB of 10^6 and 10^9 bytes."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not is_number(value):
        return clean(value)
    if unit == "bytes":
        return size(value)
    if isinstance(value, int) or hasattr(value, "bit_length") or getattr(value, "dtype", None) == "uint64":
        text = f"{int(value):,}".replace("-", "−") if abs(int(value)) < 10**18 else f"{float_of(int(value)):.4g}"
    else:
        text = _float(float(value))
    return f"{text} {unit}" if unit and finite(value) is not None else text


def float_of(value: int) -> float:
    """A whole number of any size as a float, infinite where none is large enough."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _float(value: float) -> str:
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "−infinite"
    if 1e4 <= abs(value) < 1e15:
        return f"{value:,.0f}".replace("-", "−")
    text = f"{value:.4g}"
    mantissa, mark, exponent = text.partition("e")
    if mark and (exponent in ("+03", "+04")):  # 9999.6 rounds up to 1e+04
        text = f"{value:,.0f}"
    elif mark:
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    elif abs(value) >= 1000:
        text = f"{value:,.{max(0, len(mantissa.partition('.')[2]))}f}"
    return text.replace("-", "−")


def size(count: Number) -> str:
    """A number of bytes in the unit that keeps it short: ``538.1 MB``."""
    amount = finite(count)
    if amount is None:
        return number(count)
    for step, name in enumerate(("bytes", "kB", "MB", "GB", "TB", "PB")):
        scaled = amount / 1000**step
        if abs(scaled) < 999.95 or name == "PB":
            digits = 0 if name == "bytes" else 2 if abs(scaled) < 10 else 1
            one = "byte" if name == "bytes" and scaled == 1 else name
            return f"{scaled:,.{digits}f} {one}".replace("-", "−")
    raise AssertionError("the loop ends at PB")


def duration(seconds: Number) -> str:
    """``0.42 s``, ``95 s``, ``12 min 30 s``, ``2 h 05 min``."""
    value = finite(seconds)
    if value is None or value < 0:
        return number(seconds)
    if value < 10:
        return f"{value:.2g} s" if value < 1 else f"{value:.1f} s"
    whole = round(value)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"


def words(value: object) -> str:
    """Any value of a receipt on one line: numbers as :func:`number`, lists with commas, mappings as JSON."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list | tuple) and all(not isinstance(v, list | tuple | Mapping) for v in value):
        return ", ".join(words(v) for v in value) if value else "–"
    if isinstance(value, list | tuple | Mapping):
        return clean(json.dumps(value, ensure_ascii=False, default=str))
    return number(value)


def width(text: str, points: float = 12) -> float:
    """About how wide ``text`` is at a font size of ``points``; on the wide side of common system fonts."""
    total = 0.0
    for letter in text:
        if letter in "ijl.,:;'|!I ":
            total += 0.34
        elif letter in 'ftr()[]/-"':
            total += 0.42
        elif letter in "mwMW%@→":
            total += 0.95
        elif unicodedata.east_asian_width(letter) in "WF":
            total += 1.05
        else:
            total += 0.72 if letter.isupper() else 0.63
    return total * points


def elided(text: str, room: float, points: float = 12) -> str:
    """``text``, its middle taken out where it is wider than ``room``: both ends of a tensor's name tell."""
    if width(text, points) <= room + 0.01:  # room may be this very width, rounded
        return text
    low, high = 1, len(text)
    while low < high:  # the most characters that still fit
        middle = (low + high + 1) // 2
        if width(_without_middle(text, middle), points) <= room:
            low = middle
        else:
            high = middle - 1
    return _without_middle(text, low)


def _without_middle(text: str, keep: int) -> str:
    tail = keep // 2
    return text[: keep - tail] + "…" + (text[-tail:] if tail else "")
