"""The one shape of this room's methods, and its laws.

Every method is a command: ``method(paths, *, parameters) -> {"say": [lines], ...}``. What it says stands in ``say``,
one line each; everything else is for programs. Tables are described once (:mod:`nett.lake.table`), whatever their
format; what is asked of their rows goes through an :class:`Engine`, so that one machine and a cluster give one answer.

Laws (run by the conformance suite): looking changes nothing; the same call twice says the same; a dry run changes
nothing; what was deleted comes back with the same rows and types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final, runtime_checkable

import numpy as np

from nett.lake.comparing import How
from nett.lake.table import Profile, Table

Semantics = Literal["set", "bag"]
Key = tuple[tuple[str, How], ...]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]


@final
@dataclass(frozen=True)
class Containment:
    """How many rows (distinct rows under ``set``) a child has, and how many of them its parent lacks."""

    rows: int
    missing: int

    @property
    def share(self) -> float:
        """The containment: 1 where nothing is missing, also for a child without rows."""
        return 1.0 if self.rows == 0 else 1 - self.missing / self.rows


Lacking = tuple[tuple[Any, ...], int]


@runtime_checkable
class Engine(Protocol):
    """The relational verbs of the room. Columns are named as the tables name them; NULL equals NULL.

    A ``key`` is columns and how each is compared: rows of any two tables that are equal so have equal hashes. ``bytes_read`` counts compressed bytes of the columns that were asked for. ``lanes``:
    how many threads may ask at once. ``version``: hashes of one version are equal for equal rows.
    """

    @property
    def bytes_read(self) -> int:
        """So far."""

    @property
    def lanes(self) -> int: ...

    @property
    def version(self) -> str: ...

    def profile(self, table: Table) -> Profile:
        """Rows, the kinds of columns of text files, and the span of each column, from the values themselves."""

    def sample(self, table: Table, keys: Sequence[Key], count: int) -> list[Hashes]:
        """For each key the ``count`` smallest hashes of the distinct rows in its columns, sorted: a uniform sample of
        them. The table is read once, but where many of its rows are equal."""

    def present(self, table: Table, wanted: Mapping[Key, Hashes]) -> dict[Key, Hashes]:
        """For each key those of the hashes wanted that a row of the table has, sorted. The table is read once."""

    def missing(
        self, children: Sequence[Table], parent: Table, semantics: Semantics, *, count: bool = False
    ) -> list[Containment]:
        """Exact: how many of each child's rows the parent lacks. Without ``count`` zero missing means so, and of any
        other number only that it is not zero. The parent is read as seldom as memory allows."""

    def lacking(self, child: Table, parent: Table, semantics: Semantics, most: int) -> list[Lacking]:
        """Some of the rows that the parent lacks, ``most`` at most, the same each time: canonical values of the child's
        columns in their order, and how often each is lacking (once under ``set``)."""

    def close(self) -> None:
        """Give back memory and temporary files."""
