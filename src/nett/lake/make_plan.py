"""From a lake's path to its plan: candidates, keep rules, ways, the planner's choice, the file with its selectors."""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import nett
from nett.core.edge import Edge
from nett.core.errors import Refused
from nett.core.retention import Limits, Retention, Solver
from nett.core.staging import check_folders, put_file, sync_folder
from nett.lake.candidates import look
from nett.lake.discovery import Warning
from nett.lake.inside import unit_of
from nett.lake.keep_rules import KeepRules
from nett.lake.pinning import pin_of
from nett.lake.place import Place, is_local
from nett.lake.plan_file import Cost, Deletion, Pin, Plan, renamed, write_plan
from nett.lake.planning import Choice
from nett.lake.prices import Costs
from nett.lake.quarantine import Quarantine
from nett.lake.rebuild import shown_sql
from nett.lake.ways import Search, Ways
from nett.lake.workbench import Workbench

PARENT = "others are rebuilt from it"


@final
@dataclass(frozen=True)
class Made:
    """A plan, and what was noticed while it was made."""

    plan: Plan
    edges: tuple[Edge, ...]
    warnings: list[Warning]
    tables: int
    bytes: int
    unknown: list[str]  # names in the access counts that are no tables here


def make_plan(
    path: str, *, costs: Costs, rules: KeepRules, limits: Limits, solver: Solver = "auto", seconds: float = 60.0,
    scan: Path | None = None, several: bool = True, out: Path | None = None, memory: str | None = None,
    threads: int | None = None, cache: Path | None = None, no_cache: bool = False,
) -> Made:  # fmt: skip
    """Plan, and with ``out`` write it, selectors first."""
    place = Place(path)
    root = Path(place.root)
    if not is_local(place.root):
        raise Refused("plans are for local folders as yet", where=path, hint="nett lake scan takes this address.")
    if not root.is_dir():
        raise Refused("is not a folder of tables", where=root, hint="nett lake plan PATH")
    check_folders(out)
    found = look(place, scan=scan, engine="duckdb", memory=memory, threads=threads, cache=cache, no_cache=no_cache)
    stay = {t.name: why for t in found.tables if (why := rules.why_kept(t)) is not None}
    rests = Quarantine(root).protected()
    stay |= {name: f"{child!r}, which was moved aside, is rebuilt from it" for name, child in rests.items()}
    with (
        tempfile.TemporaryDirectory(prefix="nett-lake-") as scratch,
        Workbench(memory=memory, threads=threads) as bench,
    ):
        search = Search(bench, found, costs, stay, root, Path(scratch), several=several)
        ways, choice = search.ways, Choice(found, search.ways, costs, stay, root)
        best = _proven(search, choice, limits, solver, seconds)
        greedy = best if solver == "greedy" else choice.ask(limits, "greedy", seconds)
        plan, files = _plan(choice, ways, best, greedy, costs, stay, root, out, solver)
        if out is not None:
            _write(plan, files, Path(scratch), Path(out))
    unknown = sorted(set(costs.known) - {t.name for t in found.tables})
    return Made(plan, best.taken, found.warnings, len(found.tables), sum(t.bytes for t in found.tables), unknown)


def _proven(search: Search, choice: Choice, limits: Limits, solver: Solver, seconds: float) -> Retention:
    """An answer of which every way was tried. ``seconds``: of all choosing together, though each has one."""
    spent = 0.0
    while True:
        began = time.monotonic()
        found = choice.ask(limits, solver, max(1.0, (seconds - spent) / 2))
        spent += time.monotonic() - began
        if not (wanted := choice.unproven(found)):
            return found
        search.prove(wanted)


def _plan(
    choice: Choice, ways: Ways, best: Retention, greedy: Retention, costs: Costs, stay: Mapping[str, str], root: Path,
    out: Path | None, solver: Solver,
) -> tuple[Plan, dict[str, str]]:  # fmt: skip
    files: dict[str, str] = {}  # name of a selector's file in the scratch folder -> in the plan
    deletions, pins = [], dict[str, Pin]()
    folder = f"{Path(out).name}.files" if out is not None else "plan.files"
    tables = {t.name: t for t in choice.found.tables}
    for edge in sorted(best.taken, key=lambda e: e.target):
        table, way = tables[edge.target], choice.way(edge)
        for stored in way.stored:
            files[stored.path] = f"{folder}/{stored.path}"
        way = renamed(way, files)
        laid, form = ways.laid.get(choice.first(table.name), (None, None)) if way.kind != "copy" else (None, None)
        for name in way.parents:
            pins.setdefault(name, pin_of(tables[name], root))
        own = pin_of(table, root)
        if way.kind == "copy" and [f.sha256 for f in own.files] != [f.sha256 for f in pins[way.parents[0]].files]:
            raise Refused("was written while nett was planning", where=root / table.name, hint="Plan again.")
        deletions.append(
            Deletion(
                table=own, path=unit_of(table, root), bytes=table.bytes,
                rows=laid.bag.rows if laid is not None else table.rows,
                bag=str(laid.bag) if laid is not None else None, form=form, rebuild=way,
                sql=shown_sql(way, laid.own if laid is not None else [], tables, root),
                saves=choice.worth(edge), seconds=edge.seconds or 0.0,
            )
        )  # fmt: skip
    everything = sum(costs.keeping(t.name, t.bytes) for t in choice.found.tables)
    cost = Cost(
        keep_all=everything, plan=everything - best.freed, greedy=everything - greedy.freed,
        bound=everything - best.bound, gap=best.gap, solver=solver,
    )  # fmt: skip
    gone = {d.table.name for d in deletions}
    plan = Plan(
        nett_lake_plan=1, nett=nett.__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        lake=os.path.relpath(root, Path(out).absolute().parent if out is not None else root),
        prices=costs.prices, cost=cost, delete=tuple(deletions), parents=tuple(pins[n] for n in sorted(pins)),
        kept=_kept(choice, ways, stay, gone, set(pins)),
    )  # fmt: skip
    return plan, files


def _kept(choice: Choice, ways: Ways, stay: Mapping[str, str], gone: set[str], rested: set[str]) -> dict[str, str]:
    """Why tables stay that are contained in others. ``rested``: those that deleted ones are rebuilt from."""
    found: dict[str, str] = {}
    of = {group[0]: group for group in choice.found.groups}
    contained = {t for t, some in choice.found.parents.items() if some} | {t for t, g in of.items() if len(g) > 1}
    for first in contained:
        for table in of[first]:
            if table.name in gone:
                continue
            other = PARENT if table.name in rested else "no plan within the limits is cheaper without it"
            found[table.name] = stay.get(table.name) or ways.kept.get(first.name) or other
    return dict(sorted(found.items()))


def _write(plan: Plan, files: Mapping[str, str], scratch: Path, out: Path) -> None:
    """Selectors, then the plan: a plan that is there has all that it needs."""
    parent = out.absolute().parent
    try:
        for name, target in sorted(files.items()):
            (parent / target).parent.mkdir(exist_ok=True)
            put_file(parent / target, (scratch / name).read_bytes())
        if files:
            sync_folder(parent)
        write_plan(plan, parent / out.name)
    except OSError as error:
        raise Refused(f"cannot be written: {error.strerror}", where=error.filename or out) from error


def as_json(made: Made) -> dict[str, Any]:
    """The plan with what was noticed."""
    told: dict[str, Any] = made.plan.model_dump(mode="json", exclude={"created"})
    return told | {
        "tables": made.tables, "bytes": made.bytes, "edges": [e.as_json() for e in made.edges],
        "warnings": [w.as_json() for w in made.warnings], "unknown": made.unknown,
    }  # fmt: skip
