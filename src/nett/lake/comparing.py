"""How the values of two columns are compared: the room's stated canonicalisation.

One kind: by value (NaN equals NaN, -0.0 equals 0.0, NULL equals NULL, any scale of a decimal). Numbers of two kinds:
as 64-bit floats. A date and a timestamp: as timestamps, whatever their units. All else, and everything under
``--compare text``: by text, where a whole float reads as an integer does, and a text file's own text is taken as it
stands. Times in nanoseconds are kinds of their own, for they go further down and less far up than the others.
"""

from __future__ import annotations

from typing import Literal

from nett.lake.table import NUMBERS, Column

How = Literal["value", "float", "timestamp", "moment", "text"]
Form = Literal["as it is", "text", "timestamp", "moment", "instant", "time", "double", "bigint"]
FINE = " ns"  # ends the kinds of times in nanoseconds
TIMES: dict[str, Form] = {"timestamp": "timestamp", "instant": "instant", "time": "time"}
_PLAIN = frozenset({"text", "boolean", "date", "binary", *(f"{kind}{FINE}" for kind in TIMES)})
_DAYS = frozenset({"date", "timestamp", f"timestamp{FINE}"})


def how_compared(child: Column, parent: Column, *, text: bool = False) -> How:
    """The comparison of two columns of one name."""
    if text:
        return "text"
    if child.kind == parent.kind:
        return "value"
    if child.kind in NUMBERS and parent.kind in NUMBERS:
        return "float"
    if {child.kind, parent.kind} <= _DAYS:
        return "moment" if f"timestamp{FINE}" in (child.kind, parent.kind) else "timestamp"
    return "text"


def form_of(column: Column, how: How) -> Form:
    """What an engine makes of a column's values so that equal ones are equal: ``text`` is their text, ``moment`` that of
    the timestamp they are, ``as it is`` the values themselves; of times those of its usual unit."""
    if how == "text":
        return "as it is" if column.raw else "text"
    if how == "moment":
        return "moment" if column.kind == "date" else "text"
    if how == "timestamp":
        return "timestamp"
    if how == "float" or column.kind == "float":
        return "double"
    if column.kind == "integer":
        return "bigint"
    return "as it is" if column.kind in _PLAIN else TIMES.get(column.kind, "text")
