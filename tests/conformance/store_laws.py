"""Laws of the store room (stated in nett.store.protocol): nothing given is changed, nothing is lost, twice is once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import nett
from conformance import measure_laws
from conformance.measure_laws import Law, assets
from nett.core.receipt import check_files, read_receipt
from nett.core.registry import Card
from nett.store import engine


def laws(card: Card) -> list[Law]:
    if card.parameter("apply") is not None:
        return [*measure_laws.LAWS, acting_keeps_every_byte, a_second_time_changes_nothing, what_was_freed_comes_back]
    found: list[Law] = [what_was_given_stays]
    if card.kind == "measure":
        return [*found, looking_changes_nothing]
    if card.parameter("dry_run") is not None:
        found.append(dry_run_changes_nothing)
    return [*found, twice_is_once, models_come_back]


def contents(folder: Path, *, but: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Every file below a folder, by path; without logs and times, and what ``but`` names."""
    found = (f for f in sorted(folder.rglob("*")) if f.is_file() and f.name not in ("log.jsonl", "lock", *but))
    return {str(f.relative_to(folder)): f.read_bytes() for f in found}


def call(card: Card, folder: Path, **more: Any) -> tuple[Any, Path]:
    """The command on a store of three models, or on models that go into one; and the store."""
    models = folder / "models"
    if not models.is_dir():
        assets(models)
    paths = [str(p) for p in sorted(models.iterdir())]
    store = folder / "store"
    if card.name == "add":
        return card.load()(paths, **card.resolve({"into": str(store), **more})), store
    if not store.is_dir():
        nett.store.add(paths, into=str(store))  # type: ignore[attr-defined]
    given = [f"{store}/m1"] if card.name == "remove" else [str(store)]
    return card.load()(given, **card.resolve(more)), store


def what_was_given_stays(card: Card, folder: Path) -> None:
    assets(folder / "models")
    before = contents(folder / "models")
    call(card, folder)
    assert contents(folder / "models") == before


def looking_changes_nothing(card: Card, folder: Path) -> None:
    _, store = call(card, folder)
    before = contents(store)
    first, second = call(card, folder)[0], call(card, folder)[0]
    assert first == second and contents(store) == before


def dry_run_changes_nothing(card: Card, folder: Path) -> None:
    _, store = call(card, folder, dry_run=True)
    before = contents(store) if store.is_dir() else {}
    said, _ = call(card, folder, dry_run=True)
    assert said["say"] and (contents(store) if store.is_dir() else {}) == before
    assert card.name != "add" or not store.exists()


def twice_is_once(card: Card, folder: Path) -> None:
    _, store = call(card, folder)
    before = contents(store)
    if card.name != "remove":  # what is not there cannot be removed
        call(card, folder)
    assert contents(store) == before


def models_come_back(card: Card, folder: Path) -> None:
    _, store = call(card, folder)
    for model in sorted((folder / "models").iterdir()):
        if card.name == "remove" and model.name == "m1":
            continue
        from nett.store.restoring import restore_model

        restore_model(store, model.name, folder / "back" / model.name)
        assert contents(folder / "back" / model.name) == contents(model)


# Of commands that act where the files lie, once they are told to.
def act(card: Card, paths: list[str]) -> dict[str, Any]:
    """The command with everything allowed that it can be allowed, on files of any size."""
    wide = {"apply": True, "hardlink": True, "min_size": "1"}
    found: dict[str, Any] = card.load()(paths, **card.resolve({k: v for k, v in wide.items() if card.parameter(k)}))
    return found


def with_copies(folder: Path) -> list[str]:
    """Models of which some are copies."""
    paths = assets(folder)
    for i, path in enumerate(paths[:2]):
        shutil.copytree(path, folder / f"copy{i}")
        paths.append(str(folder / f"copy{i}"))
    return paths


def bytes_of(paths: list[str]) -> dict[str, bytes]:
    """Every file of the models, by path."""
    files = [f for p in paths for f in Path(p).rglob("*") if f.is_file() and ".nett-link" not in f.parts]
    return {str(f): f.read_bytes() for f in files}


def acting_keeps_every_byte(card: Card, folder: Path) -> None:
    """Each name leads to the bytes that it led to, what is said to be freed is freed, and the receipt holds."""
    paths = with_copies(folder)
    before, used = bytes_of(paths), allocated(paths)
    done = act(card, paths)
    assert bytes_of(paths) == before
    assert done["bytes_freed"] == used - allocated(paths) > 0
    receipt = read_receipt(Path(done["receipt"]))
    checks = check_files(Path(done["receipt"]), receipt) + engine.verify(Path(done["receipt"]), receipt)
    assert len(checks) > 1 and all(c["ok"] for c in checks)
    assert sum(e["bytes_freed"] for e in receipt["edges"]) == done["bytes_freed"]


def a_second_time_changes_nothing(card: Card, folder: Path) -> None:
    paths = with_copies(folder)
    act(card, paths)
    states = {p: os.lstat(p) for p in bytes_of(paths)}
    assert act(card, paths)["bytes_freed"] == 0
    assert {p: os.lstat(p) for p in bytes_of(paths)} == states


def what_was_freed_comes_back(card: Card, folder: Path) -> None:
    """Restored files have the bytes, modes and times that they had, and share nothing that they did not share."""
    paths = with_copies(folder)
    before, states = bytes_of(paths), {p: os.lstat(p) for p in bytes_of(paths)}
    receipt = Path(act(card, paths)["receipt"])
    engine.restore(receipt, read_receipt(receipt))
    assert bytes_of(paths) == before
    for path, state in states.items():
        now = os.lstat(path)
        assert (now.st_mode, now.st_mtime_ns, now.st_nlink) == (state.st_mode, state.st_mtime_ns, state.st_nlink)


def allocated(paths: list[str]) -> int:
    """Bytes on disk, each file once."""
    return sum({s.st_ino: s.st_blocks * 512 for s in map(os.lstat, bytes_of(paths))}.values())
