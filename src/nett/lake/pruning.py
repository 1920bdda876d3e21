"""Pairs that row counts, NULL counts, minima and maxima rule out (R2D2, P03, stage 2: min-max pruning).

Only what is sound is used: unknown keeps the pair. A row count rules out under ``bag`` only, since under ``set`` a
child with repeated rows may be longer than its parent.
"""

from __future__ import annotations

from nett.lake.comparing import how_compared
from nett.lake.protocol import Semantics
from nett.lake.table import NUMBERS, Column, Table


def too_many_rows(child: Table, parent: Table, semantics: Semantics, least: float = 1.0) -> bool:
    """Whether the share ``least`` of the child cannot be in the parent for the number of its rows."""
    if child.rows is None or parent.rows is None or child.rows == 0:
        return False
    return parent.rows == 0 or (semantics == "bag" and child.rows * least > parent.rows + 1e-9 * child.rows)


def out_of_range(child: Table, parent: Table, *, text: bool = False) -> str | None:
    """The column for which the child cannot be in the parent; None if there is none."""
    if child.rows == 0:
        return None
    for column in child.columns:
        if _apart(child, column, parent, parent.column(column.name), text=text):
            return column.name
    return None


def _apart(child: Table, mine: Column, parent: Table, its: Column, *, text: bool) -> bool:
    inner, outer = child.spans.get(mine.name), parent.spans.get(its.name)
    if inner is None or outer is None:
        return False
    if inner.nulls and outer.nulls == 0:
        return True
    if inner.low is None:
        return False
    how = how_compared(mine, its, text=text)
    # Of two text files' columns the spans are of the numbers among the values, however the column is compared.
    comparable = (mine.raw and its.raw) or how == "float" or (how == "value" and mine.kind != "text")
    if not comparable:
        return False
    if outer.low is None:
        return mine.raw and its.raw and outer.nulls is not None  # there are no numbers among the parent's values
    if how == "float" or {mine.kind, its.kind} <= NUMBERS or mine.raw:
        return bool(float(inner.low) < float(outer.low) or float(inner.high) > float(outer.high))
    try:
        return bool(inner.low < outer.low or inner.high > outer.high)
    except TypeError:  # kinds of Python's that do not compare: unknown
        return False
