"""Tables that were moved aside brought back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from nett.core.errors import Refused, UsageError
from nett.core.registry import Between, method


@method(papers=["P03"], title="Restore tables of a lake", grain="stream", guarantee="exact", extra="lake",
        command=True)  # fmt: skip
def restore(
    assets: Sequence[str] = (),
    *,
    all: bool = False,
    lake: Path | None = None,
    dry_run: bool = False,
    memory_limit: str | None = None,
    threads: Annotated[int, Between(1, None)] | None = None,
) -> dict[str, Any]:
    """Bring tables back to their place: with the same bytes from the quarantine, or rebuilt after a purge.

    Args:
        all: every table that was moved aside.
        lake: the lake's folder; where you are, if not given.
        dry_run: say what would be done, and do nothing.
        memory_limit: of the engine, such as 512MB; beyond it spills to disk.
        threads: of the engine.
    When to use: when a table is missed after all, or its parent is to be changed or deleted.
    When not: to read a table now and then: a view (nett lake apply --view) reads it from its parents.
    Guarantee: exact: after a purge the same rows and types in the same format, in the same order by a stored selector
        or where the plan says so (ordered); a copy of a table of equal bytes has the same bytes.
    Cost: a rename; after a purge reads each parent twice, writes each table once.
    Source: no paper.
    """
    from nett.lake.quarantine import Quarantine
    from nett.lake.restoring import Restoring

    names = [assets] if isinstance(assets, str) else list(assets)
    root = Path(lake) if lake is not None else Path()
    if not root.is_dir():
        raise Refused("there is no such folder", where=root)
    if bool(names) == all:
        raise UsageError(
            "name tables, or say --all", where="lake/restore", hint="nett lake restore TABLE... | --all --lake PATH"
        )
    quarantine = Quarantine(root)
    run = Restoring(quarantine, memory=memory_limit, threads=threads)
    entries = run.chosen(names, all=all)
    if dry_run or not quarantine.own.is_dir():
        told: list[dict[str, object]] = [
            {"name": e.name, "from": "quarantine" if e.state == "quarantined" else "rebuild"} for e in entries
        ]
    else:
        with quarantine.changing():
            told = run.restore(entries)
    word = "would restore" if dry_run else "restored"
    lines = [f"{word} {t['name']} ({'its own bytes' if t['from'] == 'quarantine' else 'rebuilt'})" for t in told]
    lines.append(f"{word} {len(told):,} tables")
    return {"restored": told, "done": not dry_run, "say": lines}
