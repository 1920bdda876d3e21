"""From a plan to a lake without its redundant tables, and back: the same bytes before a purge, the same rows and types
after."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

import nett
from lake.test_scan import lakes
from nett.core.errors import ProofFailed, Refused, UsageError
from nett.lake.pinning import Watch
from nett.lake.quarantine import Quarantine
from support.cli import nett as cli
from support.lake_work import lake_forge
from support.lakes import value, write_lake

plan: Callable[..., dict[str, Any]] = nett.lake.plan  # type: ignore[attr-defined]
apply: Callable[..., dict[str, Any]] = nett.lake.apply  # type: ignore[attr-defined]
purge: Callable[..., dict[str, Any]] = nett.lake.purge  # type: ignore[attr-defined]
restore: Callable[..., dict[str, Any]] = nett.lake.restore  # type: ignore[attr-defined]
scan: Callable[..., dict[str, Any]] = nett.lake.scan  # type: ignore[attr-defined]


def contents(folder: Path) -> dict[str, bytes]:
    """What programs see of a lake: every file that is not nett's own."""
    files = (f for f in folder.rglob("*") if f.is_file() and ".nett-lake" not in f.parts)
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def small_lake(lake: Path) -> None:
    """A base, a filter of it, a projection of it, and strangers."""
    write_lake(lake)
    shutil.rmtree(lake / "text")
    shutil.rmtree(lake / "copies")


def rows_of(path: Path) -> tuple[Any, Counter[Any]]:
    """Types and the bag of rows, read by Arrow alone."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8") as file:
            names = file.readline()
        raw = pc.read_csv(
            path, convert_options=pc.ConvertOptions(column_types={n: pa.string() for n in names.strip().split(",")})
        )
        return names, Counter(map(str, raw.to_pylist()))
    table = pq.read_table(path)
    return str(table.schema), Counter(tuple(value(v) for v in r.values()) for r in table.to_pylist())


def planned(folder: Path, **more: Any) -> tuple[Path, dict[str, Any]]:
    out = folder / "plan.json"
    told = plan(str(folder / "lake"), out=out, threads=1, **more)
    return out, told


def test_the_whole_way(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    write_lake(lake)
    before = contents(lake)
    seen = {name: rows_of(lake / name) for name in before}
    out, told = planned(tmp_path)
    gone = {d["table"]["name"] for d in told["delete"]}
    assert len(gone) == 4 and gone >= {"filtered.parquet", "projected.parquet", "text/filtered.csv"}
    assert "Nothing was done" in cli("lake", "apply", str(out)).succeeded().out
    assert contents(lake) == before and not (lake / ".nett-lake").exists()
    assert "4 tables moved aside, 0 were already" in cli("lake", "apply", str(out), "--yes").succeeded().out
    assert contents(lake) == {n: b for n, b in before.items() if n not in gone}
    assert {t["name"] for t in scan(str(lake))["tables"]} == before.keys() - gone
    assert "0 tables moved aside, 4 were already" in cli("lake", "apply", str(out), "--yes").succeeded().out
    assert purge(str(lake), yes=True)["waiting"] == sorted(gone)  # for a week
    cli("lake", "restore", "projected.parquet", "--lake", str(lake)).succeeded()
    assert (lake / "projected.parquet").read_bytes() == before["projected.parquet"]
    assert "would free" in cli("lake", "purge", str(lake), "--after", "0d").succeeded().out
    assert sorted(purge(str(lake), after="0d", yes=True)["purged"]) == sorted(gone - {"projected.parquet"})
    assert not any((lake / ".nett-lake" / "quarantine").iterdir())
    cli("lake", "restore", "--all", "--lake", str(lake)).succeeded()
    assert {name: rows_of(lake / name) for name in contents(lake)} == seen
    assert (lake / "base.parquet").read_bytes() == (lake / "copies" / "base.parquet").read_bytes()
    assert contents(lake).keys() == before.keys() and not list((lake / ".nett-lake" / "tables").iterdir())
    events = [json.loads(line) for line in (lake / ".nett-lake" / "audit.jsonl").read_text().splitlines()]
    assert Counter(e["what"] for e in events) == {"quarantined": 4, "restored": 4, "purged": 3}
    assert all({"time", "user", "what", "table", "id", "plan"} <= e.keys() for e in events)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables=lakes())
def test_random_lakes_come_back(tmp_path_factory: pytest.TempPathFactory, tables: dict[str, pa.Table]) -> None:
    """Planned, applied, purged and restored: the same types and bags of rows."""
    folder = tmp_path_factory.mktemp("round")
    (folder / "lake").mkdir()
    for name, table in tables.items():
        pq.write_table(table, folder / "lake" / f"{name}.parquet")
    seen = {name: rows_of(folder / "lake" / name) for name in contents(folder / "lake")}
    out, told = planned(folder)
    apply(str(out), yes=True, threads=1)
    kept = set(contents(folder / "lake"))
    assert kept == {f"{n}.parquet" for n in tables} - {d["table"]["name"] for d in told["delete"]}
    purge(str(folder / "lake"), after="0d", yes=True, threads=1)
    restore([], all=True, lake=folder / "lake", threads=1)
    assert {name: rows_of(folder / "lake" / name) for name in contents(folder / "lake")} == seen


def test_what_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    small_lake(lake)
    out, told = planned(tmp_path)
    assert {d["table"]["name"] for d in told["delete"]} == {"filtered.parquet", "projected.parquet"}
    parent, child = lake / "base.parquet", lake / "filtered.parquet"
    for victim, other in [(parent, child), (child, parent)]:
        bytes_, times = victim.read_bytes(), victim.stat()
        victim.write_bytes(bytes_[:50] + bytes([bytes_[50] ^ 1]) + bytes_[51:])
        os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same size and time: only its bytes tell
        before = contents(lake)
        cli("lake", "apply", str(out), "--yes").failed(3, victim.name, "has changed since the plan")
        cli("lake", "apply", str(out)).failed(3, victim.name)
        assert contents(lake) == before
        victim.write_bytes(other.read_bytes())
        cli("lake", "apply", str(out), "--yes").failed(3, "has changed since the plan")
        victim.unlink()
        cli("lake", "apply", str(out), "--yes").failed(3, "is not there")
        victim.write_bytes(bytes_)
    apply(str(out), yes=True)
    purge(str(lake), after="0d", yes=True)
    parent.write_bytes(child_bytes := parent.read_bytes()[::-1])
    with pytest.raises(Refused, match="has changed since the plan"):
        restore(["filtered.parquet"], lake=lake)
    assert parent.read_bytes() == child_bytes and not child.exists()


@pytest.mark.parametrize("who", ["parent", "child"])
@pytest.mark.parametrize("moment", ["after the check", "after the record", "at the rename", "after the rename"])
def test_a_write_between_check_and_move_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str, moment: str
) -> None:
    """A job that rewrites a table at the last moment: nothing is moved, or it is put back."""
    lake = tmp_path / "lake"
    small_lake(lake)
    out, _ = planned(tmp_path, keep="proj*")
    victim = lake / ("base.parquet" if who == "parent" else "filtered.parquet")
    bytes_ = victim.read_bytes()
    real, still, intend = os.rename, Watch.still, Quarantine.intend
    looks = 0

    def rewrite() -> None:
        (lake / "fresh").write_bytes(bytes_ + b"more")
        os.replace(lake / "fresh", victim)

    def late(self: Watch, *args: Any, **more: Any) -> None:
        nonlocal looks
        looks += 1
        if looks == 1 and moment == "after the check":
            rewrite()
        still(self, *args, **more)

    def recorded(self: Quarantine, *args: Any) -> Any:
        found = intend(self, *args)
        if moment == "after the record":
            rewrite()
        return found

    def rename(source: Any, target: Any) -> None:
        aside = "quarantine" in str(target)
        if aside and moment == "at the rename":
            rewrite()
        real(source, target)
        if aside and moment == "after the rename" and who == "parent":
            rewrite()

    monkeypatch.setattr(Watch, "still", late)
    monkeypatch.setattr(Quarantine, "intend", recorded)
    monkeypatch.setattr(os, "rename", rename)
    if moment == "after the rename" and who == "child":
        apply(str(out), yes=True)  # nothing is wrong this time
        restore([], all=True, lake=lake)
        bytes_now = bytes_
    else:
        with pytest.raises(Refused, match="was written while nett was looking"):
            apply(str(out), yes=True)
        bytes_now = bytes_ + b"more"
    assert victim.read_bytes() == bytes_now and (lake / "filtered.parquet").exists()
    assert not list((lake / ".nett-lake" / "quarantine").glob("*/*"))


def test_parents_of_tables_that_are_aside_stay(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    write_lake(lake)
    shutil.rmtree(lake / "text")
    out, _ = planned(tmp_path, keep="copies/*,base*")
    apply(str(out), yes=True)
    (parent,) = json.loads(out.read_text())["parents"]
    told = plan(str(lake), threads=1)
    assert parent["name"] not in {d["table"]["name"] for d in told["delete"]}
    assert "is rebuilt from it" in told["kept"][parent["name"]]
    # A plan made before, in which that parent goes:
    record = json.loads(out.read_text())
    (other,) = {"base.parquet", "copies/base.parquet"} - {parent["name"]}
    record["parents"] = [parent | {"name": other, "files": [parent["files"][0] | {"path": other}]}]
    record["delete"] = [{
        "table": parent, "path": parent["name"], "bytes": 1, "rows": None, "bag": None, "form": None, "sql": "",
        "saves": 1.0, "seconds": 1.0, "rebuild": {"kind": "copy", "parts": [{"parent": other}]},
    }]  # fmt: skip
    out.write_text(json.dumps(record))
    cli("lake", "apply", str(out), "--yes").failed(3, "which was moved aside, is rebuilt from it")
    assert (lake / parent["name"]).exists()


TAMPERED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (lambda p: p.update(nett_lake_plan=2), "reads version 1"),
    "true": (lambda p: p.update(nett_lake_plan=True), "reads version 1"),
    "key": (lambda p: p.update(command="rm"), "unknown key 'command'"),
    "key below": (lambda p: p["delete"][0].update(shell="rm"), "unknown key"),
    "dots": (lambda p: p["delete"][0].update(path="../lake/filtered.parquet"), "not a plain name"),
    "absolute": (lambda p: p["delete"][0]["table"]["files"][0].update(path="/etc/passwd"), "not a plain name"),
    "own": (lambda p: p["delete"][0]["table"]["files"][0].update(path=".nett-lake/lock"), "nett's own folder"),
    "lake": (lambda p: p.update(lake="/"), "absolute path"),
    "not all of it": (lambda p: p["delete"][0].update(path="text"), "files outside"),
    "parent goes": (lambda p: p["delete"].append(copy_of(p)), "is deleted, and"),
    "unpinned": (lambda p: p.update(parents=[]), "does not pin"),
    "sha": (lambda p: p["delete"][0]["table"]["files"][0].update(sha256="0" * 64), "has changed since the plan"),
    "bag": (lambda p: p["delete"][0].update(bag="30:00"), "other rows than were pinned"),
    "no bag": (lambda p: p["delete"][0].update(bag=None), "a copy has no bag"),
    "words for a bag": (lambda p: p["delete"][0].update(bag="many"), "bag"),
    "type": (lambda p: condition(p).update(type="BIGINT); DROP TABLE x; --"), "type"),
    "low": (lambda p: condition(p).update(low="0') OR (1=1"), "cannot be rebuilt"),
    "column": (lambda p: condition(p).update(column='id" OR true --'), "has no column"),
    "format": (lambda p: p["delete"][0]["table"].update(format="../x"), "format"),
    "unknown format": (lambda p: p["parents"][0].update(format="nothing"), "nothing"),
    "twice": (lambda p: p["delete"].append(p["delete"][0]), "twice"),
    "selector": (lambda p: p["delete"][0]["rebuild"].update(order=stored("x")), "no selector"),
    "selector dots": (lambda p: p["delete"][0]["rebuild"].update(kind="selector", order=stored("../x")), "plain name"),
    "infinite": (lambda p: p["prices"].update(storage="Infinity"), "storage"),
}  # fmt: skip


def copy_of(record: dict[str, Any]) -> dict[str, Any]:
    parent = record["parents"][0]
    return record["delete"][0] | {"table": parent, "path": parent["files"][0]["path"]}


def condition(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = record["delete"][0]["rebuild"]["parts"][0]["where"][0]
    return found


def stored(path: str) -> dict[str, Any]:
    return {"path": path, "bytes": 1, "sha256": "0" * 64}


@pytest.fixture(scope="module")
def one_plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("tamper")
    small_lake(folder / "lake")
    out, told = planned(folder, keep="proj*")
    assert [d["table"]["name"] for d in told["delete"]] == ["filtered.parquet"]
    return folder, out.read_text()


@pytest.mark.parametrize("what", TAMPERED)
def test_tampered_plans_are_refused(one_plan: tuple[Path, str], what: str) -> None:
    folder, text = one_plan
    record = json.loads(text)
    act, words = TAMPERED[what]
    act(record)
    (folder / "other.json").write_text(json.dumps(record))
    before = contents(folder / "lake")
    with pytest.raises((Refused, ProofFailed)) as caught:
        apply(str(folder / "other.json"), yes=True, threads=1)
    assert words in str(caught.value), str(caught.value)
    assert contents(folder / "lake") == before
    assert not list((folder / "lake").glob(".nett-lake/tables/*"))


def test_no_plan_at_all(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{}")
    cli("lake", "apply", str(tmp_path / "p.json")).failed(3, "is no plan")
    (tmp_path / "p.json").write_text("[" * 100_000)
    cli("lake", "apply", str(tmp_path / "p.json")).failed(3, "is no plan")
    cli("lake", "apply", str(tmp_path / "none.json")).failed(3, "cannot be read")
    cli("lake", "apply").failed(2, "name one plan")
    cli("lake", "restore", "--lake", str(tmp_path)).failed(2, "name tables")
    cli("lake", "restore", "x", "--lake", str(tmp_path)).failed(2, "no table called 'x'")
    cli("lake", "purge", str(tmp_path), "--after", "soon").failed(2, "'soon' is no length of time")


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A name on the way, or the table itself, that became a symbolic link since."""
    lake = tmp_path / "lake"
    write_lake(lake)
    out, _ = planned(tmp_path, keep="base*,copies/*,filtered*,proj*")
    os.rename(lake / "text", tmp_path / "away")
    os.symlink(tmp_path / "away", lake / "text")
    cli("lake", "apply", str(out), "--yes").failed(3, "symbolic link")
    (lake / "text").unlink()
    os.rename(tmp_path / "away", lake / "text")
    os.rename(lake / "text" / "filtered.csv", tmp_path / "filtered.csv")
    os.symlink(tmp_path / "filtered.csv", lake / "text" / "filtered.csv")
    cli("lake", "apply", str(out), "--yes").failed(3, "symbolic link")
    assert (tmp_path / "filtered.csv").exists()


def test_hostile_names(tmp_path: Path) -> None:
    names = ["a'; DROP TABLE x; --", 'q"uote', "p0", "select", "A", "a", "x.y", "ä😀"]
    base = pa.table([[10 * i + j for j in range(30)] for i in range(8)], names)
    lake = tmp_path / "lake"
    (lake / 'it\'s; "here"').mkdir(parents=True)
    pq.write_table(base, lake / 'it\'s; "here"' / "o'ne.parquet")
    pq.write_table(base.slice(4, 20).select(names[::-1]), lake / "--two\n.parquet")
    pq.write_table(base.take(pa.array([3, 1, 2, 8, 13, 21])).select(names[:3]), lake / "$(x).parquet")
    seen = {n: rows_of(lake / n) for n in contents(lake)}
    out, told = planned(tmp_path)
    assert {d["table"]["name"] for d in told["delete"]} == {"--two\n.parquet", "$(x).parquet"}
    apply(str(out), yes=True, view="duckdb")
    purge(str(lake), after="0d", yes=True)
    restore([], all=True, lake=lake)
    assert {n: rows_of(lake / n) for n in contents(lake)} == seen


def test_a_view_stands_in(tmp_path: Path) -> None:
    import duckdb

    lake = tmp_path / "lake"
    write_lake(lake)
    out, _ = planned(tmp_path, keep="copies/*")
    wanted = pq.read_table(lake / "filtered.parquet")
    apply(str(out), yes=True, view="duckdb")
    with duckdb.connect() as db:
        db.execute((lake / "filtered.parquet.duckdb.sql").read_text())
        assert db.sql('SELECT * FROM "filtered.parquet"').fetchall() == [tuple(r.values()) for r in wanted.to_pylist()]
        db.execute((lake / "text" / "filtered.csv.duckdb.sql").read_text())
    (lake / "projected.parquet.duckdb.sql").write_text("-- mine now")
    restore([], all=True, lake=lake)
    assert [p.name for p in lake.rglob("*.sql")] == ["projected.parquet.duckdb.sql"]


def test_one_at_a_time(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    write_lake(lake)
    out, _ = planned(tmp_path)
    before = contents(lake)
    with Quarantine(lake).changing():
        for words in (
            ["apply", str(out), "--yes"],
            ["restore", "--all", "--lake", str(lake)],
            ["purge", str(lake), "--yes"],
        ):
            cli("lake", *words).failed(3, "another nett is changing this lake")
    assert contents(lake) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to become nobody")
def test_as_an_unprivileged_user() -> None:
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, which another run may shut meanwhile
        Path(folder).chmod(0o755)
        _as_nobody(Path(folder))


def _as_nobody(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    write_lake(lake)
    out, _ = planned(tmp_path)
    before = contents(lake)

    def nobody(*words: str) -> tuple[int, str, str]:
        code, said, err = lake_forge().run("support.lake_work:lake_as_nobody", words=["lake", *words])
        return code, said, err

    code, _, err = nobody("apply", str(out))
    assert code == 3, err  # the lake is another's
    code, _, err = nobody("apply", str(out), "--yes")
    assert code == 3 and "cannot be written" in err and "Traceback" not in err
    os.chown(lake, 65534, 65534)
    code, _, err = nobody("apply", str(out), "--yes")
    assert code == 3 and "cannot be written by this user" in err  # the folder text
    assert contents(lake) == before
    os.chown(lake / "text", 65534, 65534)
    (lake / "copies").chmod(0)
    code, _, err = nobody("apply", str(out), "--yes")
    assert code == 3 and "Permission denied" in err
    (lake / "copies").chmod(0o755)
    assert contents(lake) == before
    code, _, err = nobody("apply", str(out), "--yes")
    assert code == 0, err
    (lake / "text").chmod(0o555)
    code, _, err = nobody("restore", "--all", "--lake", str(lake))
    assert code in (1, 3) and "Permission denied" in err
    (lake / "text").chmod(0o755)
    assert nobody("restore", "--all", "--lake", str(lake))[0] == 0 and contents(lake) == before


def test_bytes_that_went_from_the_quarantine_by_other_hands(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    small_lake(lake)
    wanted = rows_of(lake / "filtered.parquet")
    out, _ = planned(tmp_path, keep="proj*")
    apply(str(out), yes=True)
    (data,) = (lake / ".nett-lake" / "quarantine").glob("*/filtered.parquet")
    bytes_ = data.read_bytes()
    data.write_bytes(b"other bytes")
    with pytest.raises(Refused, match="has changed"):
        restore(["filtered.parquet"], lake=lake)
    data.unlink()
    assert restore(["filtered.parquet"], lake=lake)["restored"] == [{"name": "filtered.parquet", "from": "rebuild"}]
    assert rows_of(lake / "filtered.parquet") == wanted
    apply(str(planned(tmp_path, keep="proj*")[0]), yes=True)
    (lake / "filtered.parquet").write_bytes(bytes_)
    with pytest.raises(Refused, match="something else lies there now"):
        restore([], all=True, lake=lake)
    with pytest.raises(UsageError, match=r"Did you mean 'filtered\.parquet'"):
        restore(["filtred.parquet"], lake=lake)


def test_tables_that_are_folders(tmp_path: Path) -> None:
    """Parts of one output move as their folder, with what is hidden in it; equal partitions come back file by file."""
    lake = tmp_path / "lake"
    base = pa.table({"id": list(range(90)), "x": [i * i % 97 for i in range(90)]})
    for folder, start in (("whole", 0), ("some", 30)):
        (lake / folder).mkdir(parents=True)
        for part in range(start // 30, 3):
            pq.write_table(base.slice(30 * part, 30), lake / folder / f"part-{part}.parquet")
        (lake / folder / "_SUCCESS").touch()
    for copy in ("days", "days2"):
        for day in ("1", "2"):
            (lake / copy / f"day={day}").mkdir(parents=True)
            pq.write_table(
                base.slice(int(day), 9).select(["x"]).rename_columns(["y"]), lake / copy / f"day={day}" / "f.parquet"
            )
    before = contents(lake)
    out, told = planned(tmp_path)
    assert {d["path"]: d["rebuild"]["kind"] for d in told["delete"]} == {"days": "copy", "some": "predicate"}
    apply(str(out), yes=True)
    assert not (lake / "some").exists() and not (lake / "days").exists()
    restore(["some"], lake=lake)
    assert {n: b for n, b in before.items() if not n.startswith("days/")} == contents(lake)
    apply(str(out), yes=True)
    purge(str(lake), after="0d", yes=True)
    restore([], all=True, lake=lake)
    after = contents(lake)
    assert {n: b for n, b in after.items() if n[:4] != "some"} == {n: b for n, b in before.items() if n[:4] != "some"}
    assert [n for n in after if n[:4] == "some"] == ["some/part-1.parquet"]
    assert pq.read_table(lake / "some").sort_by("id").equals(base.slice(30, 60))
    for copy in ("days", "days2"):
        (lake / copy / "stranger.txt").write_text("not of the table")
    assert {d["path"] for d in plan(str(lake), threads=1)["delete"]} == {"some/part-1.parquet"}
