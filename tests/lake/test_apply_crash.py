"""Killed at any write step of apply, purge and restore, every table is at its place or in the quarantine, or can be
rebuilt; run again, the command ends as if nothing had been."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nett
from lake.test_apply import contents, rows_of
from support.faults import full_disk
from support.lake_work import lake_forge


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with a copy and a selector with an order, and its plan."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "lake" / "sub").mkdir(parents=True)
    base = pa.table({"id": list(range(50)), "name": [f"n{i % 7}" for i in range(50)], "v": [i / 8 for i in range(50)]})
    pq.write_table(base, folder / "lake" / "base.parquet")
    pq.write_table(base.take(pa.array([9, 3, 3, 44, 17, 8, 30])), folder / "lake" / "sub" / "some.parquet")
    shutil.copy(folder / "lake" / "base.parquet", folder / "lake" / "sub" / "copy.parquet")
    told = nett.lake.plan(str(folder / "lake"), out=folder / "plan.json", threads=1)  # type: ignore[attr-defined]
    assert sorted(d["rebuild"]["kind"] for d in told["delete"]) == ["copy", "selector"]
    return folder


def fresh(made: Path, to: Path) -> Path:
    if to.exists():
        shutil.rmtree(to)
    shutil.copytree(made, to)
    return to


def arguments(folder: Path, call: str) -> dict[str, Any]:
    at = {"plan": str(folder / "plan.json")} if call == "lake_apply" else {"lake": str(folder / "lake")}
    return {"call": call, **at}


def run(folder: Path, call: str) -> None:
    given = arguments(folder, call)
    lake_forge().run(f"support.lake_work:{given.pop('call')}", **given)


def everything_is_somewhere(lake: Path, wanted: dict[str, Any]) -> None:
    """Each table is at its place, or whole in the quarantine, or has a record that says it was purged."""
    there = contents(lake)
    for name, seen in wanted.items():
        if name in there:
            assert rows_of(lake / name) == seen, name
            continue
        records = [r for r in (lake / ".nett-lake" / "tables").glob("*/record.json")
                   if json.loads(r.read_text())["deletion"]["path"] == name]  # fmt: skip
        assert len(records) == 1, name
        data = lake / ".nett-lake" / "quarantine" / records[0].parent.name / Path(name).name
        assert (records[0].parent / "purged.json").exists() or rows_of(data) == seen, name


STARTS = {  # what was done before, and what is done to end it all
    "lake_apply": [],
    "lake_purge": ["lake_apply"],
    "lake_restore": ["lake_apply"],
    "lake_rebuild": ["lake_apply", "lake_purge"],
}


@pytest.mark.parametrize("call", STARTS)
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_death_at_every_write_step(made: Path, tmp_path: Path, call: str, every: int) -> None:
    begun = fresh(made, tmp_path / "begun")
    wanted = {name: rows_of(begun / "lake" / name) for name in contents(begun / "lake")}
    for before in STARTS[call]:
        run(begun, before)
    work = "lake_restore" if call == "lake_rebuild" else call
    calm = fresh(begun, tmp_path / "calm")
    steps = lake_forge().run("support.lake_work:counted", **arguments(calm, work))
    after = contents(calm / "lake")
    last = Counter(e["what"] for e in events(calm / "lake"))
    assert steps > 15
    for step in range(0, steps, every):
        folder = fresh(begun, tmp_path / "again")
        lake_forge().start(
            "support.lake_work:counted", die_at=step, torn=step // every % 2 == 1, **arguments(folder, work)
        )
        assert lake_forge().wait().code == 77, step
        everything_is_somewhere(folder / "lake", wanted)
        if step // every % 3 == 2 and work != "lake_restore":  # undone at once, from what was left
            run(folder, "lake_restore")
            assert {n: rows_of(folder / "lake" / n) for n in contents(folder / "lake")} == wanted, step
            run(folder, "lake_apply")
            if work == "lake_purge":
                run(folder, "lake_purge")
        else:
            run(folder, work)
            assert Counter(e["what"] for e in events(folder / "lake")) == last, step
        assert contents(folder / "lake").keys() == after.keys(), step
        assert not list((folder / "lake" / ".nett-lake" / "tmp").iterdir()), step
        everything_is_somewhere(folder / "lake", wanted)
        assert len(list((folder / "lake" / ".nett-lake" / "tables").iterdir())) == len(wanted) - len(after), step


def events(lake: Path) -> Iterator[dict[str, Any]]:
    """The log's lines but those that a kill cut in two."""
    for line in (lake / ".nett-lake" / "audit.jsonl").read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            assert line.startswith('{"time"') or line == ""


def test_a_disk_that_is_full_loses_nothing(made: Path, tmp_path: Path) -> None:
    wanted = {name: rows_of(made / "lake" / name) for name in contents(made / "lake")}
    for at in range(0, 60, 13):
        folder = fresh(made, tmp_path / "again")
        try:
            with full_disk(folder / "lake", at):
                nett.lake.apply(str(folder / "plan.json"), yes=True, threads=1)  # type: ignore[attr-defined]
        except nett.core.errors.NettError:
            pass
        everything_is_somewhere(folder / "lake", wanted)
        nett.lake.apply(str(folder / "plan.json"), yes=True, threads=1)  # type: ignore[attr-defined]
        assert list(contents(folder / "lake")) == ["base.parquet"] or len(contents(folder / "lake")) == 1
