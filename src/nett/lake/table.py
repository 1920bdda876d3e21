"""A table of the lake, whatever its format: name, files, columns, rows, and what is known of each column's values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

NUMBERS = frozenset({"integer", "decimal", "float"})


@final
@dataclass(frozen=True)
class File:
    """One file of a table. ``mark`` changes whenever its content may have: the time of its last change, or its etag.
    ``partition``: what its folders say of all of its rows, as (column, value)."""

    path: str
    size: int
    mark: str
    partition: tuple[tuple[str, str | None], ...] = ()


@final
@dataclass(frozen=True)
class Column:
    """A column, nested fields flattened. ``place`` is the top-level column's number, ``inner`` the fields below it.

    ``kind``: integer, decimal, float, text, boolean, date, timestamp, instant (with a zone), time (each of these three
    followed by `` ns`` where it is in nanoseconds), binary, or a type's own name where it compares with itself only.
    ``raw``: the file holds text, and ``kind`` is what all of it says. ``at``: the numbers of the inner fields from 1,
    where some of their names differ by case only.
    """

    name: str
    kind: str
    place: int
    inner: tuple[str, ...] = ()
    raw: bool = False
    at: tuple[int, ...] = ()


@final
@dataclass(frozen=True)
class Span:
    """What is known of a column's values; None is unknown. ``low`` and ``high`` leave NULL and NaN out."""

    low: Any = None
    high: Any = None
    nulls: int | None = None


@final
@dataclass(frozen=True)
class Profile:
    """What reading a table's values tells: rows, the kinds of columns that are text in the file, spans."""

    rows: int
    kinds: Mapping[str, str]
    spans: Mapping[str, Span]


@final
@dataclass(eq=False)
class Table:
    """One table. Compared and hashed as the object it is; ``name`` is unique in its lake."""

    name: str
    format: str
    files: tuple[File, ...]
    columns: tuple[Column, ...]
    rows: int | None = None
    spans: Mapping[str, Span] = field(default_factory=dict)
    chunk_bytes: Mapping[str, int] = field(default_factory=dict)  # compressed bytes of a column, where files tell
    options: Mapping[str, Any] = field(default_factory=dict)  # of the format: a dialect, a version
    version: str | None = None  # that the format itself gives: a snapshot, a commit
    whole: bool = False  # its columns cannot be read apart, so an engine reads it once
    described: int = 0  # bytes that were read to describe it, beyond footers
    notes: tuple[tuple[str, str], ...] = ()  # warnings of a table that is read all the same

    @property
    def bytes(self) -> int:
        return sum(f.size for f in self.files)

    @property
    def schema(self) -> frozenset[str]:
        return frozenset(c.name for c in self.columns)

    def column(self, name: str) -> Column:
        return self._by_name[name]

    def bytes_of(self, columns: frozenset[str]) -> int:
        """Bytes that reading these columns takes: of whole files, where they do not tell columns apart."""
        if not self.chunk_bytes:
            return self.bytes
        return sum(self.chunk_bytes.get(name, 0) for name in columns)

    def learn(self, profile: Profile) -> None:
        """Take over what reading the values told."""
        from dataclasses import replace

        self.rows = profile.rows
        self.columns = tuple(replace(c, kind=profile.kinds.get(c.name, c.kind)) for c in self.columns)
        self.spans = {**self.spans, **profile.spans}
        self.__dict__.pop("_names", None)

    @property
    def _by_name(self) -> dict[str, Column]:
        found: dict[str, Column] | None = self.__dict__.get("_names")
        if found is None:
            found = self.__dict__["_names"] = {c.name: c for c in self.columns}
        return found
