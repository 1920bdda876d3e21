"""Quantities as people write them: ``989 TFLOP/s``, ``3.35 TB/s``, ``80 GiB``, ``28 pJ/B``, ``4x``, ``8 FLOP/B``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, final

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12}  # fmt: skip
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_NUMBER = re.compile(r"\s*([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*?)\s*$")
# kind -> the units that it may have, each with its size in the first
KINDS: dict[str, dict[str, float]] = {
    "rate of operations": {"FLOP/s": 1.0, "FLOPS": 1.0, "FLOP/B": 1.0},
    "bandwidth": {"B/s": 1.0},
    "bandwidth of PIM": {"B/s": 1.0, "x": 1.0},
    "memory": {"B": 1.0},
    "energy of an operation": {"J/FLOP": 1.0},
    "energy of a byte": {"J/B": 1.0, "J/bit": 8.0},
    "time": {"s": 1.0},
    "rate of requests": {"/s": 1.0, "1/s": 1.0, "Hz": 1.0},
    "power": {"W": 1.0},
}
EXAMPLES = {
    "rate of operations": "989 TFLOP/s, or 8 FLOP/B for so many operations a byte of its bandwidth",
    "bandwidth": "3.35 TB/s",
    "bandwidth of PIM": "13.4 TB/s, or 4x for so many times the xPU's",
    "memory": "80 GiB",
    "energy of an operation": "0.23 pJ/FLOP",
    "energy of a byte": "28 pJ/B or 3.5 pJ/bit",
    "time": "0.8 us",
    "rate of requests": "8/s",
    "power": "100 W",
}
RELATIVE = ("x", "FLOP/B")
_MAY_BE_ZERO = ("energy of an operation", "energy of a byte", "time", "power")


@final
@dataclass(frozen=True)
class Quantity:
    """A value in base units (FLOP/s, B/s, B, J/FLOP, J/B, s, 1/s, W), or relative to another (``unit`` x or FLOP/B)."""

    value: float
    unit: str = ""

    @property
    def relative(self) -> bool:
        return self.unit in RELATIVE


def quantity(text: Any, kind: str) -> Quantity:
    """``text`` as a quantity of ``kind``; ValueError that says what is accepted."""
    accepted = f"write it with its unit, as in {EXAMPLES[kind]}"
    if isinstance(text, Quantity):
        return text
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError(f"is no quantity; {accepted}")
    found = _NUMBER.match(str(text))
    if not found:
        raise ValueError(f"is no quantity; {accepted}")
    value, written = float(found[1].replace("_", "")), found[2]
    if not written:
        raise ValueError(f"has no unit; {accepted}")
    if not 0 <= value < float("inf") or (value == 0 and kind not in _MAY_BE_ZERO):
        raise ValueError(f"is negative, zero or not finite; {accepted}")
    for unit, size in KINDS[kind].items():
        if written == unit and unit in RELATIVE:
            return Quantity(value, unit)
        if unit in RELATIVE or not written.endswith(unit):
            continue
        prefix = written.removesuffix(unit)
        scale = _PREFIXES.get(prefix) or (_BINARY.get(prefix) if unit in ("B", "B/s") else None)
        if scale is not None:
            return Quantity(value * scale * size)
    raise ValueError(f"has the unit {written!r}, which is no {kind}; {accepted}")
