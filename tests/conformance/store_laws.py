"""Laws of the store room (stated in nett.store.protocol): nothing given is changed, nothing is lost, twice is once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nett
from conformance.measure_laws import Law, assets
from nett.core.registry import Card


def laws(card: Card) -> list[Law]:
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
