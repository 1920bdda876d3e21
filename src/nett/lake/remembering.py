"""A scan that asks its cache first: descriptions of tables, and an engine whose answers are kept.

The answers are those that would be read: samples are kept longer than they were asked for and cut, hashes that a table
was asked about are not looked for again.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, final

import numpy as np

from nett.lake.cache import Cache
from nett.lake.discovery import Candidate, described
from nett.lake.equal_tables import digest_of
from nett.lake.formats import Unreadable, module_of
from nett.lake.place import is_local
from nett.lake.plain import plain_value
from nett.lake.protocol import Containment, Engine, Hashes, Key, Lacking, Semantics
from nett.lake.table import Column, File, Profile, Span, Table

LONGER = 256  # hashes of a sample at least
MOST_ASKED = 1 << 20  # hashes that are kept of a table
_CONTENT = ("ragged", "broken-line")  # what is wrong with the content, and not with the way to it
_DATES: dict[str, Callable[[str], Any]] = {
    "datetime": datetime.datetime.fromisoformat, "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat, "Decimal": Decimal,
}  # fmt: skip


@final
class Remembering:
    """An engine before which a cache stands. ``text``: how the engine compares."""

    def __init__(self, engine: Engine, cache: Cache, *, text: bool) -> None:
        self._engine, self._cache = engine, cache
        self._how = [type(engine).__name__, engine.version, text]
        self.lanes = engine.lanes
        self.version = engine.version

    @property
    def bytes_read(self) -> int:
        return self._engine.bytes_read

    def close(self) -> None:
        self._engine.close()

    def profile(self, table: Table) -> Profile:
        key = self._about(table)
        columns = _columns(table)
        if key is not None and (found := self._cache.get("profile", key, "", self._how, columns)) is not None:
            told = json.loads(found)
            if "unreadable" in told:
                raise Unreadable(told["why"], told["unreadable"])
            return Profile(told["rows"], told["kinds"], {n: _span(s) for n, s in told["spans"].items()})
        try:
            profile = self._engine.profile(table)
        except Unreadable as why:
            if key is not None and _of_content(why, table.files):
                failed = json.dumps({"unreadable": why.what, "why": str(why)}).encode()
                self._cache.put(failed, "profile", key, "", self._how, columns)
            raise
        spans = _plain_spans(profile.spans)
        if key is not None and spans is not None:
            told = {"rows": profile.rows, "kinds": dict(profile.kinds), "spans": spans}
            self._cache.put(json.dumps(told).encode(), "profile", key, "", self._how, columns)
        return profile

    def sample(self, table: Table, keys: Sequence[Key], count: int) -> list[Hashes]:
        about = self._about(table)
        if about is None:
            return self._engine.sample(table, keys, count)
        asked = {key: ("sample", about, "", self._how, *_of_key(table, key)) for key in keys}
        known: dict[Key, Hashes] = {}
        for key in keys:
            if (found := self._cache.get(*asked[key])) is not None:
                most, hashes = int.from_bytes(found[:8], "little"), np.frombuffer(found[8:], np.uint64)
                if hashes.size < most or count <= most:
                    known[key] = hashes
        new, most = [key for key in keys if key not in known], max(LONGER, count)
        for key, hashes in zip(new, self._engine.sample(table, new, most) if new else [], strict=True):
            self._cache.put(most.to_bytes(8, "little") + hashes.astype(np.uint64).tobytes(), *asked[key])
            known[key] = hashes
        return [known[key][:count] for key in keys]

    def present(self, table: Table, wanted: Mapping[Key, Hashes]) -> dict[Key, Hashes]:
        about = self._about(table)
        if about is None:
            return self._engine.present(table, wanted)
        asked = {key: ("present", about, "", self._how, *_of_key(table, key)) for key in wanted}
        before, there = {}, {}
        for key in wanted:
            found = self._cache.get(*asked[key])
            size, both = (0, b"") if found is None else (int.from_bytes(found[:8], "little"), found[8:])
            before[key], there[key] = np.split(np.frombuffer(both, np.uint64), [size])
        new = {key: np.setdiff1d(hashes, before[key]) for key, hashes in wanted.items()}
        new = {key: hashes for key, hashes in new.items() if hashes.size}
        for key, hashes in (self._engine.present(table, new) if new else {}).items():
            there[key], before[key] = np.union1d(there[key], hashes), np.union1d(before[key], new[key])
            if before[key].size <= MOST_ASKED:
                told = before[key].size.to_bytes(8, "little") + before[key].tobytes() + there[key].tobytes()
                self._cache.put(told, *asked[key])
        return {key: np.intersect1d(hashes, there[key]) for key, hashes in wanted.items()}

    def missing(
        self, children: Sequence[Table], parent: Table, semantics: Semantics, *, count: bool = False
    ) -> list[Containment]:
        other, found = self._about(parent), dict[Table, Containment]()
        asked: dict[Table, tuple[Any, ...]] = {}
        for child in children:
            one = self._about(child)
            if one is None or other is None:
                continue
            columns = _columns(parent, [c.name for c in child.columns])
            asked[child] = ("missing", one, other, self._how, _columns(child), columns, semantics, count)
            if (told := self._cache.get(*asked[child])) is not None:
                found[child] = Containment(*json.loads(told))
        new = [child for child in children if child not in found]
        answers = self._engine.missing(new, parent, semantics, count=count) if new else []
        for child, answer in zip(new, answers, strict=True):
            found[child] = answer
            if child in asked:
                self._cache.put(json.dumps([answer.rows, answer.missing]).encode(), *asked[child])
        return [found[child] for child in children]

    def lacking(self, child: Table, parent: Table, semantics: Semantics, most: int) -> list[Lacking]:
        one, other = self._about(child), self._about(parent)
        if one is None or other is None:
            return self._engine.lacking(child, parent, semantics, most)
        names = [c.name for c in child.columns]
        asked = ("lacking", one, other, self._how, _columns(child), _columns(parent, names), semantics, most)
        if (found := self._cache.get(*asked)) is not None:
            return [(tuple(row), n) for row, n in json.loads(found)]
        answer = [(tuple(map(plain_value, row)), n) for row, n in self._engine.lacking(child, parent, semantics, most)]
        self._cache.put(json.dumps(answer).encode(), *asked)
        return answer

    def _about(self, table: Table) -> str | None:
        return about(self._cache, table.format, table.files, table.version)


def about(cache: Cache, format: str, files: Sequence[File], version: str | None = None) -> str | None:
    """The key of a table's content. A table without files is told by nothing."""
    if not files:
        return None
    return cache.about(f"{format} {version or ''}", getattr(module_of(format), "VERSION", 1), files)


def describing(cache: Cache) -> Callable[[Candidate], Table]:
    """What describes tables, and asks the cache first."""

    def describe(one: Candidate) -> Table:
        key = about(cache, one.format, one.files)
        if key is not None and (found := cache.get("described", key, "", one.name)) is not None:
            told = json.loads(found)
            if "unreadable" in told:
                raise Unreadable(told["why"], told["unreadable"])
            return _table(told)
        try:
            table = described(one.name, one.format, one.files)
        except Unreadable as why:
            if key is not None and _of_content(why, one.files):
                cache.put(
                    json.dumps({"unreadable": why.what, "why": str(why)}).encode(), "described", key, "", one.name
                )
            raise
        plain = _plain_table(table)
        if key is not None and plain is not None:
            cache.put(json.dumps(plain).encode(), "described", key, "", one.name)
        return table

    return describe


def digesting(cache: Cache) -> Callable[[Table], tuple[str | None, int]]:
    """What hashes the bytes of tables, and asks the cache first."""

    def digest(table: Table) -> tuple[str | None, int]:
        key = about(cache, table.format, table.files, table.version)
        if key is not None and (found := cache.get("digest", key)) is not None:
            return found.decode(), 0
        told, read = digest_of(table)
        if key is not None and told is not None:
            cache.put(told.encode(), "digest", key)
        return told, read

    return digest


def _of_content(why: Unreadable, files: Sequence[File]) -> bool:
    """Whether the same files will be as unreadable next time; a store may only have been out of reach."""
    return why.what in _CONTENT and all(is_local(f.path) for f in files)


def _columns(table: Table, names: Sequence[str] | None = None) -> list[list[Any]]:
    some = table.columns if names is None else [table.column(n) for n in names]
    return [[c.name, c.kind, c.place, list(c.inner), c.raw, list(c.at)] for c in some]


def _of_key(table: Table, key: Key) -> tuple[list[list[Any]], list[str]]:
    return _columns(table, [name for name, _ in key]), [how for _, how in key]


def _plain_table(table: Table) -> dict[str, Any] | None:
    spans = _plain_spans(table.spans)
    if spans is None:
        return None
    return {
        "name": table.name, "format": table.format, "columns": _columns(table), "rows": table.rows, "spans": spans,
        "files": [[f.path, f.size, f.mark, f.partition] for f in table.files], "chunk_bytes": dict(table.chunk_bytes),
        "options": dict(table.options), "version": table.version, "whole": table.whole, "notes": table.notes,
    }  # fmt: skip


def _table(told: dict[str, Any]) -> Table:
    files = [File(p, size, mark, tuple((k, v) for k, v in told_by)) for p, size, mark, told_by in told["files"]]
    columns = [
        Column(n, kind, place, tuple(inner), raw, tuple(at)) for n, kind, place, inner, raw, at in told["columns"]
    ]
    return Table(
        told["name"], told["format"], tuple(files), tuple(columns), told["rows"],
        {n: _span(s) for n, s in told["spans"].items()}, told["chunk_bytes"], told["options"], told["version"],
        told["whole"], 0, tuple((w, y) for w, y in told["notes"]),
    )  # fmt: skip


def _plain_spans(spans: Any) -> dict[str, list[Any]] | None:
    """Spans as JSON; None where a value is of a type that would not come back as it is."""
    told: dict[str, list[Any]] = {}
    for name, span in spans.items():
        ends = []
        for end in (span.low, span.high):
            if end is None or type(end) in (bool, int, float, str):
                ends.append(end)
            elif type(end).__name__ in _DATES and type(end).__module__ in ("datetime", "decimal"):
                ends.append([type(end).__name__, str(end) if isinstance(end, Decimal) else end.isoformat()])
            else:
                return None
        told[name] = [*ends, span.nulls]
    return told


def _span(told: list[Any]) -> Span:
    low, high = (_DATES[end[0]](end[1]) if isinstance(end, list) else end for end in told[:2])
    return Span(low, high, told[2])
