"""Children of one parent that one join can serve: the same columns, compared with the parent's in the same way."""

from __future__ import annotations

from collections.abc import Sequence

from nett.lake.comparing import how_compared
from nett.lake.protocol import Key
from nett.lake.table import Table


def key_of(child: Table, parent: Table, *, text: bool) -> Key:
    """The child's columns by name, each as the two tables compare it."""
    columns = sorted(child.columns, key=lambda c: c.name)  # tables that order their columns otherwise have one key
    return tuple((c.name, how_compared(c, parent.column(c.name), text=text)) for c in columns)


def alike(children: Sequence[Table], parent: Table, *, text: bool) -> dict[Key, list[Table]]:
    """By key the children to be put below one another: canonical values of one key are of the same types."""
    found: dict[Key, list[Table]] = {}
    for child in children:
        found.setdefault(key_of(child, parent, text=text), []).append(child)
    return found
