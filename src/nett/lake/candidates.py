"""Pairs of tables of which one may be rebuilt from the other: by a scan's comparison, or a scan's file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from nett.core.errors import Refused
from nett.lake.cache import Cache, cache_of
from nett.lake.discovery import Warning, find_tables
from nett.lake.equal_tables import equal_tables
from nett.lake.formats import Unreadable
from nett.lake.place import Place
from nett.lake.protocol import Engine
from nett.lake.remembering import Remembering, describing, digesting
from nett.lake.scanning import open_engine
from nett.lake.schema_graph import contained_schemas
from nett.lake.stages import Search
from nett.lake.table import Table


@final
@dataclass
class Candidates:
    """``groups``: tables of equal bytes, the first stands for all. ``parents``: of those that stand for others, the
    tables that seem to contain it; ``wider``: all that have its columns."""

    tables: list[Table]
    groups: list[list[Table]]
    parents: dict[Table, list[Table]] = field(default_factory=dict)
    wider: dict[Table, list[Table]] = field(default_factory=dict)
    warnings: list[Warning] = field(default_factory=list)


def look(
    place: Place, *, scan: Path | None, engine: str, memory: str | None, threads: int | None, cache: Path | None = None,
    no_cache: bool = False,
) -> Candidates:  # fmt: skip
    """By the scan's stages, and what its cache knows; with ``scan``, by the edges in a scan's JSON instead."""
    kept = None if no_cache else cache_of(place.root, None if cache is None else Path(cache))
    complete = False
    try:
        verbs: Engine = open_engine(engine, memory=memory, threads=threads, text=False)
        if kept is not None:
            verbs = Remembering(verbs, kept, text=False)
        try:
            found = _look(place, verbs, scan, threads, kept)
        finally:
            verbs.close()
        complete = scan is None
    finally:
        if kept is not None:
            kept.close(complete=complete)
    return found


def _look(place: Place, verbs: Engine, scan: Path | None, threads: int | None, kept: Cache | None) -> Candidates:
    tables, warnings = find_tables(
        place, threads=threads or min(8, os.cpu_count() or 1), describe=describing(kept) if kept else None
    )
    digest = digesting(kept) if kept else None
    if scan is None:
        found = Search(verbs, digest=digest).run(tables)
        made = Candidates(tables, found.groups, warnings=warnings + found.warnings)
        for child, parent in found.edges:
            made.parents.setdefault(child, []).append(parent)
    else:
        made = Candidates(
            tables, equal_tables(tables, digest)[0] if digest else equal_tables(tables)[0], warnings=warnings
        )
        made.parents = _told(scan, made)
        for table in {t: None for c, some in made.parents.items() for t in (c, *some) if t.rows is None}:
            try:
                table.learn(verbs.profile(table))
            except Unreadable as why:
                made.warnings.append(Warning(table.name, why.what, str(why)))
    made.wider = contained_schemas({group[0]: group[0].schema for group in made.groups})
    return made


def _told(scan: Path, made: Candidates) -> dict[Table, list[Table]]:
    """The edges of a scan's file between tables that are still there."""
    try:
        told = json.loads(Path(scan).read_bytes())
        pairs = [(str(e["child"]), str(e["parent"])) for e in told["edges"] if e["containment"] == 1]
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}", where=scan) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused("is not what nett lake scan --json writes", where=scan) from error
    first = {t.name: group[0] for group in made.groups for t in group}
    found: dict[Table, dict[Table, None]] = {}
    for child, parent in pairs:
        if child in first and parent in first and first[child] is not first[parent]:
            if first[child].schema <= first[parent].schema:
                found.setdefault(first[child], {})[first[parent]] = None
    return {child: list(some) for child, some in found.items()}
