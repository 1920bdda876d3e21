"""A plan carried out: tables that others hold are moved aside, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from nett.core.errors import UsageError
from nett.core.registry import Between, method


@method(papers=["P03"], title="Apply a plan: rebuild, compare, move aside", grain="stream", guarantee="exact",
        extra="lake", command=True)  # fmt: skip
def apply(
    assets: Sequence[str],
    *,
    yes: bool = False,
    lake: Path | None = None,
    view: Literal["none", "duckdb", "spark"] = "none",
    memory_limit: str | None = None,
    threads: Annotated[int, Between(1, None)] | None = None,
) -> dict[str, Any]:
    """Move the tables of a plan into the lake's quarantine, each after it was rebuilt and compared.

    Args:
        yes: do it; without, check every pin and say what would be done.
        lake: the lake's folder, if it does not lie where it lay relative to the plan.
        view: leave a file of SQL beside each table's place that makes a view of it, where one statement can say it.
        memory_limit: of the engine, such as 512MB; beyond it spills to disk.
        threads: of the engine.
    When to use: after looking at a plan. Nothing is freed until nett lake purge; nett lake restore undoes it.
    When not: while jobs write to the tables or their parents: what they touched is refused.
    Guarantee: exact: a table goes only after a rebuild from its parents, written in its format and read back, had its
        bag of rows and its types; a kill at any moment leaves the table at its place or in the quarantine.
    Cost: reads each table and its parents twice (sha256, rebuild), writes each table once into a temporary file.
    Source: P03 (R2D2) for the plan; quarantine, proof and log are ours.
    """
    from nett.lake.applying import Applying, as_json

    paths = [assets] if isinstance(assets, str) else list(assets)
    if len(paths) != 1:
        raise UsageError("name one plan", where="lake/apply", hint="nett lake apply PLAN.json")
    run = Applying(Path(paths[0]), lake)
    if not yes:
        done = run.done()
        todo = [d for d in run.plan.delete if d.table.name not in done]
        run.check(todo, view)
        lines = [f"would move aside {d.table.name} ({d.bytes:,} bytes), {d.rebuild.kind} of {', '.join(d.rebuild.parents)}"
                 for d in todo]  # fmt: skip
        lines.append(f"{len(todo):,} tables, {sum(d.bytes for d in todo):,} bytes; {len(done):,} are aside already")
        lines += ["Nothing was done. Do it: the same command with --yes"] if todo else []
        return as_json(run, todo, None) | {"say": lines}
    with run.quarantine.changing():
        done = run.done()
        todo = [d for d in run.plan.delete if d.table.name not in done]
        run.check(todo, view)
        entries = run.apply(todo, view=view, memory=memory_limit, threads=threads)
    lines = [f"moved aside: {e.name}" for e in entries]
    lines.append(
        f"{len(entries):,} tables moved aside, {len(done):,} were already; {run.quarantine.own / 'audit.jsonl'}"
    )
    lines.append(
        f"Free their bytes: nett lake purge {run.root} --after 7d   Undo: nett lake restore --all --lake {run.root}"
    )
    return as_json(run, todo, entries) | {"say": lines}
