"""Which tables of a lake to delete, since others hold all that they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from nett.core.errors import UsageError
from nett.core.registry import Between, method


@method(papers=["P03"], title="Retention plan of a lake (Opt-Ret)", kind="measure", grain="stream", guarantee="exact",
        extra="lake", command=True)  # fmt: skip
def plan(
    assets: Sequence[str],
    *,
    out: Path | None = None,
    prices: Path | None = None,
    access: Path | None = None,
    rules: Path | None = None,
    keep: str | None = None,
    owner: str | None = None,
    tag: str | None = None,
    min_age: str | None = None,
    hold: str | None = None,
    max_restore_seconds: Annotated[float, Between(0)] | None = None,
    solver: Literal["auto", "ilp", "dyn-lin", "greedy"] = "auto",
    solver_seconds: Annotated[float, Between(0)] = 60.0,
    scan: Path | None = None,
    several: bool = True,
    cache: Path | None = None,
    no_cache: bool = False,
    memory_limit: str | None = None,
    threads: Annotated[int, Between(1, None)] | None = None,
) -> dict[str, Any]:
    """Choose which tables to delete and how each is rebuilt from tables that stay, at the least cost.

    Formula: minimise sum of kept tables' storage and maintenance + sum over deleted tables of accesses * rebuild cost;
        a deleted table has a retained parent, one hop away
    Args:
        out: the plan's file, which nett lake apply takes; selectors of rows lie in a folder beside it.
        prices: YAML with storage, maintenance, read, write (a GB), months, accesses, operations, read_mb_s, write_mb_s,
            start_seconds.
        access: CSV with name, accesses, operations, a month, of tables of which they are known.
        rules: YAML with rules that keep tables (match, owner, tag, min_age, why), patterns under hold, and owner, tags
            and hold of tables.
        keep: patterns of names of tables that stay, as a*,b/*.
        owner: owners whose tables stay, as a,b; a table is its file's owner's where the rules do not say.
        tag: tags of tables that stay.
        min_age: tables changed within that time stay, such as 30d.
        hold: patterns of names under legal hold; they stay.
        max_restore_seconds: the longest that rebuilding one table may take.
        solver: ilp (HiGHS), dyn-lin (lines and trees), greedy, or auto, which takes what fits each part.
        solver_seconds: for the solver in all.
        scan: JSON of nett lake scan to start from, in place of the scan's stages.
        several: also look for tables that several others together hold.
        cache: folder for what the next look need not read again; by default the user's cache folder, as for the scan.
        no_cache: read everything, and keep nothing.
        memory_limit: of the engine, such as 512MB; beyond it spills to disk.
        threads: of the engine.
    When to use: before nett lake apply, and to learn what a lake's redundancy costs.
    When not: for tables that are written every day: a plan holds for the files as they are.
    Guarantee: exact: each rebuild of the plan was done, and gave the table's very bag of rows by its own types.
    Cost: the scan's stages; each table that could go is read once, each parent once for each table tried.
    Source: P03 (R2D2), section 5 (Opt-Ret, Dyn-Lin); how a table is rebuilt, and its proof, are ours.
    """
    from nett.core.retention import Limits
    from nett.lake.keep_rules import KeepRules
    from nett.lake.make_plan import as_json, make_plan
    from nett.lake.plan_words import plan_lines
    from nett.lake.prices import Costs, read_access, read_prices

    paths = [assets] if isinstance(assets, str) else list(assets)
    if len(paths) != 1:
        raise UsageError("name one folder of tables", where="lake/plan", hint="nett lake plan PATH --out PLAN.json")
    made = make_plan(
        paths[0],
        costs=Costs(read_prices(prices), read_access(access)),
        rules=KeepRules.of(rules, keep=keep, owner=owner, tag=tag, min_age=min_age, hold=hold),
        limits=Limits(seconds=float("inf") if max_restore_seconds is None else max_restore_seconds),
        solver=solver, seconds=solver_seconds, scan=scan, several=several, out=out, memory=memory_limit, threads=threads,
        cache=cache, no_cache=no_cache,
    )  # fmt: skip
    return as_json(made) | {"say": plan_lines(made, paths[0], out)}
