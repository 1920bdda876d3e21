"""What rests on a removed model is coded anew, so that its bytes come free; and units of one folder as bases."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.checkpoint import open_checkpoint
from nett.core.errors import ProofFailed
from nett.core.tiny import fine_tune_of, write_llama
from nett.store.add import add
from nett.store.checking import check_store, with_bases
from nett.store.gc import gc
from nett.store.library import Library
from nett.store.objects import object_path
from nett.store.remove import remove
from nett.store.restoring import restore_model
from nett.store.units import units_of
from support.cli import nett as cli
from support.forge import forge
from support.tensors import write_tensors


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def size_of(store: Path) -> int:
    return sum(f.stat().st_size for f in (store / "objects").rglob("*") if f.is_file())


def comes_back(store: Path, models: dict[str, Path], scratch: Path) -> None:
    checks, hit = check_store(store, full=True)
    assert {c["name"] for c in checks} == {f"model {n}" for n in models} and not hit
    for name, model in models.items():
        restore_model(store, name, scratch / name)
        assert bytes_of(scratch / name) == bytes_of(model)
        shutil.rmtree(scratch / name)


def of_no_model(store: Path) -> set[str]:
    """Objects that no model lists, whatever rests on them."""
    with Library.open(store) as library:
        needed = set().union(*(m.objects for m in library.models()))
    return {f.name for f in (store / "objects").glob("??/*")} - needed


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and fine-tunes that are added behind it, so that they rest on it; m4 on m1."""
    folder = tmp_path_factory.mktemp("family")
    base = write_llama(folder / "base", layers=1, hidden=64, vocab=200)
    tuned = [fine_tune_of(base, folder / f"m{i}", seed=i, density=0.1) for i in (1, 2, 3)]
    return {p.name: p for p in (base, *tuned, fine_tune_of(tuned[0], folder / "m4", seed=9, density=0.1))}


def store_of(folder: Path, models: dict[str, Path], *names: str) -> Path:
    for name in names or models:
        add([str(models[name])], into=str(folder))
    return folder


@pytest.mark.parametrize("names", [("base", "m1"), ("base", "m1", "m2"), ("base", "m1", "m4")])
def test_a_removed_base_comes_free(tmp_path: Path, family: dict[str, Path], names: tuple[str, ...]) -> None:
    """Its bytes go, the store grows smaller, and all that rested on it is the same, byte for byte."""
    store = store_of(tmp_path / "store", family, *names)
    with Library.open(store) as library:
        assert library.model("base").base is None and library.model("m1").base == "base"
    before = size_of(store)
    remove([f"{store}/base"])
    assert of_no_model(store)
    would = gc([str(store)], grace=0.0, recode="always", dry_run=True)
    assert "would code anew" in would["say"][0] and size_of(store) == before
    done = gc([str(store)], grace=0.0, recode="always")
    assert done["recoded"] == would["recoded"] > 0 and done["freed"] == would["freed"]
    assert not of_no_model(store) and size_of(store) < before
    comes_back(store, {n: family[n] for n in names[1:]}, tmp_path / "out")
    with Library.open(store) as library:
        bases = {m.name: m.base for m in library.models()}
    assert "base" not in bases.values() and sum(b is None for b in bases.values()) == 1  # one root, not all
    assert gc([str(store)], grace=0.0)["recoded"] == 0


def test_what_the_planner_chooses_now(tmp_path: Path, family: dict[str, Path]) -> None:
    """A base in the middle of a chain: what rested on it goes to what is there, at no greater depth."""
    store = store_of(tmp_path / "store", family)
    remove([f"{store}/m1"])
    gc([str(store)], grace=0.0)
    assert not of_no_model(store)
    with Library.open(store) as library:
        assert library.model("m4").base == "base"
        part = max(library.model("m4").tensors.values(), key=lambda p: p.nbytes)
        assert len(library.objects.chain(part.object)) == 2
    comes_back(store, {n: p for n, p in family.items() if n != "m1"}, tmp_path / "out")


def test_only_where_it_makes_the_store_smaller(tmp_path: Path) -> None:
    """Two fine-tunes that touch few weights, but not each the other's: the base is less than what they would be."""
    base = write_llama(tmp_path / "base", layers=1, hidden=64, vocab=200)
    far = [fine_tune_of(base, tmp_path / f"m{i}", seed=i, density=0.02, size=1.0) for i in (1, 2, 3, 4)]
    models = {p.name: p for p in far}
    store = store_of(tmp_path / "store", {"base": base, **models})
    remove([f"{store}/base"])
    never = gc([str(store)], grace=0.0, recode="never")
    assert never["recoded"] == 0 and never["kept"] > 0 and of_no_model(store)
    before = size_of(store)
    done = gc([str(store)], grace=0.0)
    assert size_of(store) <= before
    if done["kept"]:
        assert any("kept:" in line for line in done["say"])
        assert gc([str(store)], grace=0.0, recode="always")["kept"] == 0
    assert not of_no_model(store)
    comes_back(store, models, tmp_path / "out")


def test_grace_and_readers_hold_it_back(tmp_path: Path, family: dict[str, Path]) -> None:
    """Nothing is coded anew for what may be wanted back, or while somebody reads."""
    store = store_of(tmp_path / "store", family, "base", "m1")
    remove([f"{store}/base"])
    assert gc([str(store)], grace=1.0)["recoded"] == 0
    assert add([str(family["base"])], into=str(store))["models"][0]["stored"] == 0
    remove([f"{store}/base"])
    with open_checkpoint(store / "m1"):
        assert gc([str(store)], grace=0.0)["recoded"] == 0 and of_no_model(store)
    assert gc([str(store)], grace=0.0)["recoded"] > 0
    comes_back(store, {"m1": family["m1"]}, tmp_path / "out")


def test_a_reader_that_gc_overtakes(tmp_path: Path, family: dict[str, Path]) -> None:
    """Opened before its base went: what it holds open is looked up anew, and the bytes are right."""
    store = store_of(tmp_path / "store", family, "base", "m1")
    with Library.open(store) as reader:
        model = reader.model("m1")
        part = max(model.tensors.values(), key=lambda p: p.nbytes)
        held = reader.objects.opened(part.object)
        assert held.base is not None
        remove([f"{store}/base"])
        gc([str(store)], grace=0.0)
        data = reader.objects.read(part.object, 0, part.nbytes)
    with open_checkpoint(family["m1"]) as plain:
        name = next(n for n, p in model.tensors.items() if p is part)
        assert data.tobytes() == plain.read(name).tobytes()


def test_death_while_coding_anew(tmp_path: Path) -> None:
    """At steps all over a collection: all models whole, and the same command again ends the work."""
    base = write_llama(tmp_path / "base", layers=1, hidden=32, vocab=80, inter=96, heads=2, kv_heads=1)
    family = {"base": base} | {f"m{i}": fine_tune_of(base, tmp_path / f"m{i}", seed=i, density=0.1) for i in (1, 2)}
    some = {n: family[n] for n in ("m1", "m2")}
    first = store_of(tmp_path / "first", family, "base", "m1", "m2")
    remove([f"{first}/base"])
    calm = shutil.copytree(first, tmp_path / "calm")
    steps = int(forge().run("support.work:counted", call="store_gc", store=str(calm)))
    assert steps > 20 and not of_no_model(calm)
    for step in sorted({*range(0, steps, 29), *range(steps - 20, steps, 7)}):
        store = shutil.copytree(first, tmp_path / f"store{step}")
        forge().start("support.work:counted", die_at=step, torn=step % 2 == 1, call="store_gc", store=str(store))
        assert forge().wait().code == 77
        comes_back(store, some, tmp_path / "out")
        again = add([str(family["base"])], into=str(store))  # what a killed collection left is no trap for an add
        assert again["models"] or "already" in again["say"][0]
        comes_back(store, {**some, "base": family["base"]}, tmp_path / "out")
        remove([f"{store}/base"])
        gc([str(store)], grace=0.0)
        assert not of_no_model(store)
        comes_back(store, some, tmp_path / "out")
        shutil.rmtree(store)


def test_an_object_without_its_base_is_written_anew(tmp_path: Path, family: dict[str, Path]) -> None:
    """add does not trust an object because it is there: what it rests on must be there too."""
    store = store_of(tmp_path / "store", family, "base", "m1")
    with Library.open(store) as library:
        base = library.model("base")
        part = max(base.tensors.values(), key=lambda p: p.nbytes)
    remove([f"{store}/base", f"{store}/m1"])
    next((store / "objects").rglob(part.object)).unlink()
    add([str(family["m1"])], into=str(store), deltas=False)
    comes_back(store, {"m1": family["m1"]}, tmp_path / "out")


def test_a_base_that_was_lost_and_came_back_deeper(tmp_path: Path, family: dict[str, Path]) -> None:
    """What rested on it said that it rests on one difference, and now rests on two: that is written anew."""
    store = store_of(tmp_path / "store", family, "base", "m1")
    with Library.open(store) as library:
        bases = {library.objects.opened(p.object).base for p in library.model("m1").tensors.values()} - {None}
    assert bases
    remove([f"{store}/base", f"{store}/m1"])
    for digest in bases:
        object_path(store, digest).unlink()
    add([str(family["m2"])], into=str(store))
    add([str(family["base"])], into=str(store))  # as a difference to m2
    with Library.open(store) as library:
        assert any(library.objects.opened(digest).depth for digest in bases)
    add([str(family["m1"])], into=str(store))
    checks, hit = check_store(store, full=True)
    assert all(c["ok"] for c in checks) and not hit
    comes_back(store, {n: family[n] for n in ("base", "m1", "m2")}, tmp_path / "out")


def test_an_unreadable_object_stops_collection(tmp_path: Path, family: dict[str, Path]) -> None:
    """What it rests on is not known, so nothing may go."""
    store = store_of(tmp_path / "store", family, "base", "m1")
    with Library.open(store) as library:
        part = max(library.model("m1").tensors.values(), key=lambda p: p.nbytes)
    victim = next((store / "objects").rglob(part.object))
    blob = victim.read_bytes()
    victim.write_bytes(b"\xff" * 8 + blob[8:])
    remove([f"{store}/base"])
    before = {f.name for f in (store / "objects").glob("??/*")}
    with pytest.raises(ProofFailed, match="not known what it rests on"):
        gc([str(store)], grace=0.0)
    assert {f.name for f in (store / "objects").glob("??/*")} == before
    victim.write_bytes(blob)
    gc([str(store)], grace=0.0)
    comes_back(store, {"m1": family["m1"]}, tmp_path / "out")


def test_days_of_grace_begin_anew_with_each_add(tmp_path: Path, family: dict[str, Path]) -> None:
    store = store_of(tmp_path / "store", family, "base")
    remove([f"{store}/base"])
    gc([str(store)], grace=1.0)
    for mark in (store / "unneeded").iterdir():
        os.utime(mark, (0, 0))
    add([str(family["base"])], into=str(store))
    remove([f"{store}/base"])
    assert gc([str(store)], grace=1.0)["freed"] == 0


def test_a_dry_run_of_removing_says_what_it_comes_to(tmp_path: Path, family: dict[str, Path]) -> None:
    store = store_of(tmp_path / "store", family, "base", "m1", "m4")
    before = bytes_of(store)
    said = cli("store", "remove", f"{store}/base", "--dry-run").succeeded().out
    assert "would code anew" in said and "m1" in said and bytes_of(store) == before
    cli("store", "remove", f"{store}/base").succeeded()
    done = gc([str(store)], grace=0.0)
    assert f"would free {done['freed']:,} bytes" in said


# Several models in one folder.
def test_checkpoints_of_one_run_rest_on_each_other(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = write_llama(run / "checkpoint-500", layers=1, hidden=64, vocab=200)
    second = fine_tune_of(first, run / "checkpoint-1000", seed=1, density=0.1)
    fine_tune_of(second, run / "checkpoint-1500", seed=2, density=0.1)
    (run / "trainer_state.json").write_text("{}")
    store = tmp_path / "store"
    alone = add([str(run)], into=str(tmp_path / "alone"), deltas=False)["models"][0]["stored"]
    done = add([str(run)], into=str(store))["models"][0]
    assert done["stored"] < 0.6 * alone and len(done["bases"]) == 2 and done["base"] is None
    assert "2 of its 3 units" in done["why"]
    comes_back(store, {"run": run}, tmp_path / "out")
    other = fine_tune_of(second, tmp_path / "other", seed=5, density=0.1)
    assert add([str(other)], into=str(store))["models"][0]["base"] == "run"
    remove([f"{store}/run"])
    gc([str(store)], grace=0.0, recode="always")
    assert not of_no_model(store)
    comes_back(store, {"other": other}, tmp_path / "out")


def test_several_weight_files_in_one_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(300, 64)).astype(np.float32)
    tuned = base + (rng.random(base.shape) < 0.05) * np.float32(1e-3)
    write_tensors(tmp_path / "m" / "a.safetensors", {"w": base, "only": base[:20] * 3})
    write_tensors(tmp_path / "m" / "b.safetensors", {"w": tuned, "only": base[:20] * 3})
    done = add([str(tmp_path / "m")], into=str(tmp_path / "store"))["models"][0]
    assert list(done["bases"].values()) in (["m:a.safetensors"], ["m:b.safetensors"])
    assert done["stored"] < 1.4 * base.nbytes
    comes_back(tmp_path / "store", {"m": tmp_path / "m"}, tmp_path / "out")


def test_units(tmp_path: Path) -> None:
    """Shards are one unit, folders several, and so are files with the same names."""
    run = tmp_path / "run"
    for step in (1, 2):
        write_llama(run / f"checkpoint-{step}", layers=1, seed=step, shards=3, hidden=64, vocab=200)
    add([str(run)], into=str(tmp_path / "store"))
    with Library.open(tmp_path / "store") as library:
        model = library.model("run")
    units = units_of("run", model.files)
    assert [u.name for u in units] == ["run:checkpoint-1", "run:checkpoint-2"]
    assert units[0].tensors.keys() == units[1].tensors.keys()
    assert [u.name for u in units_of("one", model.files[:4])] == ["one"]


# Chains.
def test_deep_chains(tmp_path: Path, monkeypatch: Any) -> None:
    """Never deeper than DEEPEST; every model on the way decodes right, and within the limit that it was added under."""
    monkeypatch.setattr(importlib.import_module("nett.store.coding"), "DEEPEST", 6)
    store = tmp_path / "store"
    models = {"m0": write_llama(tmp_path / "m0", layers=1, hidden=64, vocab=200)}
    add([str(models["m0"])], into=str(store))
    for i in range(1, 10):
        models[f"m{i}"] = fine_tune_of(models[f"m{i - 1}"], tmp_path / f"m{i}", seed=i, density=0.2)
        add([str(models[f"m{i}"])], into=str(store))
    with Library.open(store) as library:
        depths = [
            max(len(library.objects.chain(p.object)) - 1 for p in library.model(m).tensors.values())
            for m in sorted(models)
        ]
    assert max(depths) == 6 and depths[:7] == list(range(7))
    comes_back(store, models, tmp_path / "out")


@pytest.mark.parametrize("hops", [1, 2])
def test_a_limit_holds_along_what_is_stored(tmp_path: Path, hops: int) -> None:
    """One by one or in one call: no model rests on more differences than its limit has seconds for."""
    from nett.store.planning import DELTA_RATE, PLAIN_RATE

    models = [write_llama(tmp_path / "m0", layers=1, hidden=64, vocab=200)]
    models += [fine_tune_of(models[-1], tmp_path / f"m{i}", seed=i, density=0.2) for i in (1,)]
    for i in (2, 3, 4):
        models.append(fine_tune_of(models[-1], tmp_path / f"m{i}", seed=i, density=0.2))
    nbytes = sum(f.stat().st_size for f in models[0].iterdir())
    limit = nbytes / PLAIN_RATE + (hops + 0.5) * nbytes / DELTA_RATE
    for store, calls in (("one", [[m] for m in models]), ("all", [models])):
        for call in calls:
            add([str(m) for m in call], into=str(tmp_path / store), max_restore_seconds=limit)
        with Library.open(tmp_path / store) as library:
            deepest = max(len(library.objects.chain(d)) - 1 for m in library.models() for d in m.objects)
            assert 1 <= deepest <= hops
            assert all(m.seconds == limit for m in library.models())


def test_records_of_the_first_stores_are_read(tmp_path: Path, family: dict[str, Path]) -> None:
    """Without the fields that came later."""
    store = store_of(tmp_path / "store", family, "base", "m1")
    for record in (store / "models").iterdir():
        held = json.loads(record.read_text())
        record.write_text(json.dumps({k: v for k, v in held.items() if k not in ("bases", "seconds", "sha256")}))
    add([str(family["m4"])], into=str(store))
    remove([f"{store}/base"])
    gc([str(store)], grace=0.0)
    comes_back(store, {n: family[n] for n in ("m1", "m4")}, tmp_path / "out")
    with Library.open(store) as library:
        assert library.model("m1").base != "base"


def test_a_ring_is_an_error_and_no_loop(tmp_path: Path, family: dict[str, Path]) -> None:
    """A store that somebody forged."""
    store = store_of(tmp_path / "store", family, "base", "m1")
    with Library.open(store) as library:
        part = max(library.model("m1").tensors.values(), key=lambda p: p.nbytes)
        own = library.objects.opened(part.object)
        assert own.base is not None
        blob = own.path.read_bytes().replace(str(own.base).encode(), part.object.encode())
    own.path.write_bytes(blob)
    with Library.open(store) as library:
        with pytest.raises(ProofFailed, match="rests on itself"):
            library.objects.read(part.object, 0, 10)
        assert with_bases(library, {part.object}) == {part.object}
    assert check_store(store, full=False)[1] or check_store(store, full=True)[1]
