"""How the values of two columns are compared: the room's stated canonicalisation.

One kind: by value (NaN equals NaN, -0.0 equals 0.0, NULL equals NULL, any scale of a decimal). Numbers of two kinds:
as 64-bit floats. A date and a timestamp: as timestamps. All else, and everything under ``--compare text``: by text,
where a whole float reads as an integer does, and a text file's own text is taken as it stands.
"""

from __future__ import annotations

from typing import Literal

from nett.lake.table import NUMBERS, Column

How = Literal["value", "float", "timestamp", "text"]
Form = Literal["as it is", "text", "timestamp", "double", "bigint"]
_PLAIN = frozenset({"text", "boolean", "date", "timestamp", "instant", "time", "binary"})
_DAYS = frozenset({"date", "timestamp"})


def how_compared(child: Column, parent: Column, *, text: bool = False) -> How:
    """The comparison of two columns of one name."""
    if text:
        return "text"
    if child.kind == parent.kind:
        return "value"
    if child.kind in NUMBERS and parent.kind in NUMBERS:
        return "float"
    if {child.kind, parent.kind} <= _DAYS:
        return "timestamp"
    return "text"


def form_of(column: Column, how: How) -> Form:
    """What an engine makes of a column's values so that equal ones are equal: ``text`` is their text, ``as it is`` the
    values themselves."""
    if how == "text":
        return "as it is" if column.raw else "text"
    if how == "timestamp":
        return "timestamp"
    if how == "float" or column.kind == "float":
        return "double"
    if column.kind == "integer":
        return "bigint"
    return "as it is" if column.kind in _PLAIN else "text"
