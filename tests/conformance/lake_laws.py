"""Laws of the lake room (stated in nett.lake.protocol): looking changes nothing, twice says the same, a dry run changes
nothing, what was deleted comes back."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import nett
from conformance.measure_laws import Law, answered
from nett.core.registry import Card
from support.lakes import value, write_lake


def laws(card: Card) -> list[Law]:
    if card.kind == "measure":
        return [says_the_same_twice, looking_changes_nothing]
    return [a_dry_run_changes_nothing, twice_is_once, what_was_deleted_comes_back]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder, by path, with the time of its last change."""
    return {str(f): (f.read_bytes(), f.stat().st_mtime_ns) for f in sorted(folder.rglob("*")) if f.is_file()}


def said(card: Card, paths: list[str]) -> Any:
    """The answer without what it took: its lines for people tell seconds, and a cache spares reading."""
    return {k: _effortless(v) for k, v in answered(card, paths).items() if k != "say"}


def _effortless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _effortless(v) for k, v in value.items() if k != "bytes_read"}
    return [_effortless(v) for v in value] if isinstance(value, list) else value


def says_the_same_twice(card: Card, folder: Path) -> None:
    """Also of files that are old enough to be kept in a cache."""
    paths = write_lake(folder / "lake")
    for file in (folder / "lake").rglob("*"):
        os.utime(file, (1_700_000_000, 1_700_000_000))
    assert said(card, paths) == said(card, paths)


def looking_changes_nothing(card: Card, folder: Path) -> None:
    paths = write_lake(folder / "lake")
    before = contents(folder)
    said(card, paths)
    assert contents(folder) == before


# Of commands that move tables: each is called where it has something to do.
def ready(card: Card, folder: Path) -> Path:
    """A lake of Parquet, its plan, and what comes before the command already done."""
    write_lake(folder / "lake")
    shutil.rmtree(folder / "lake" / "text")
    nett.lake.plan(str(folder / "lake"), out=folder / "plan.json")  # type: ignore[attr-defined]
    if card.name != "apply":
        nett.lake.apply(str(folder / "plan.json"), yes=True)  # type: ignore[attr-defined]
    return folder / "lake"


def act(card: Card, lake: Path, *, do: bool) -> dict[str, Any]:
    """The command on that lake; without ``do``, its dry run."""
    assets = {"apply": [str(lake.parent / "plan.json")], "purge": [str(lake)], "restore": []}[card.name]
    more = {"apply": {}, "purge": {"after": "0d"}, "restore": {"all": True, "lake": lake}}[card.name]
    word = {"dry_run": not do} if card.parameter("dry_run") else {"yes": do}
    found: dict[str, Any] = card.load()(assets, **(card.resolve({}) | more | word))
    return found


def rows(lake: Path) -> dict[str, tuple[str, Counter[Any]]]:
    """Types and bag of rows of every table, read by Arrow."""
    tables = {f: pq.read_table(f) for f in lake.rglob("*.parquet") if ".nett-lake" not in f.parts}
    return {
        str(f.relative_to(lake)): (str(t.schema), Counter(tuple(map(value, r.values())) for r in t.to_pylist()))
        for f, t in tables.items()
    }


def a_dry_run_changes_nothing(card: Card, folder: Path) -> None:
    lake = ready(card, folder)
    before = contents(folder)
    assert len(act(card, lake, do=False)["say"]) > 1
    assert contents(folder) == before


def twice_is_once(card: Card, folder: Path) -> None:
    lake = ready(card, folder)
    act(card, lake, do=True)
    before = contents(folder)
    act(card, lake, do=True)
    assert contents(folder) == before


def what_was_deleted_comes_back(card: Card, folder: Path) -> None:
    write_lake(folder / "as_it_was")
    shutil.rmtree(folder / "as_it_was" / "text")
    lake = ready(card, folder)
    act(card, lake, do=True)
    if card.name != "restore":
        assert rows(lake) != rows(folder / "as_it_was")
        nett.lake.restore([], all=True, lake=lake)  # type: ignore[attr-defined]
    assert rows(lake) == rows(folder / "as_it_was")
