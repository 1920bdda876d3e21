"""Nothing that is needed is ever collected; sequences of everything end with every model whole."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from nett.core.errors import NettError, Refused
from nett.core.tiny import fine_tune_of, write_llama
from nett.store.add import add
from nett.store.checking import check_store
from nett.store.gc import gc
from nett.store.library import Library
from nett.store.remove import remove
from nett.store.restoring import contents, restore_model
from support.forge import forge


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    base = write_llama(folder / "base", layers=1, hidden=32, vocab=80, inter=48, heads=2, kv_heads=1)
    tuned = [fine_tune_of(base, folder / f"m{i}", seed=i) for i in range(1, 4)]
    chained = fine_tune_of(tuned[0], folder / "m4", seed=9)
    return {p.name: p for p in (base, *tuned, chained)}


def whole(store: Path, models: dict[str, Path], names: set[str], scratch: Path) -> None:
    """The store holds exactly ``names``, and each comes back."""
    checks, hit = check_store(store, full=True)
    assert {c["name"] for c in checks} == {f"model {n}" for n in names} and not hit, (checks, hit)
    for name in names:
        restore_model(store, name, scratch / name)
        assert bytes_of(scratch / name) == bytes_of(models[name])
        shutil.rmtree(scratch / name)


def test_bases_of_differences_stay(tmp_path: Path, models: dict[str, Path]) -> None:
    store = tmp_path / "store"
    add([str(p) for p in models.values()], into=str(store))
    remove([f"{store}/base", f"{store}/m1"])
    gc([str(store)], grace=0.0)
    whole(store, models, {"m2", "m3", "m4"}, tmp_path / "out")
    remove([f"{store}/{n}" for n in ("m2", "m3", "m4")])
    gc([str(store)], grace=0.0)
    assert not list((store / "objects").glob("??/*"))


def test_the_grace_period(tmp_path: Path, models: dict[str, Path]) -> None:
    store = tmp_path / "store"
    add([str(models["base"])], into=str(store))
    remove([f"{store}/base"])
    first = gc([str(store)], grace=1.0)
    assert first["freed"] == 0 and first["waiting"] > 0
    assert add([str(models["base"])], into=str(store))["models"][0]["stored"] == 0  # nothing had gone
    for mark in (store / "unneeded").iterdir():
        os.utime(mark, (0, 0))
    assert gc([str(store)], grace=1.0)["freed"] == 0  # needed again, however long it was not
    whole(store, models, {"base"}, tmp_path / "out")
    remove([f"{store}/base"])
    gc([str(store)], grace=1.0)
    for mark in (store / "unneeded").iterdir():
        os.utime(mark, (0, 0))
    assert gc([str(store)], grace=1.0)["freed"] > 0


def test_a_reader_keeps_what_it_reads(tmp_path: Path, models: dict[str, Path]) -> None:
    from nett.core.runner import Pool

    store = tmp_path / "store"
    add([str(models["base"]), str(models["m1"])], into=str(store))
    with Library.open(store) as library:
        model = library.model("m1")
        with library.leased(model):
            remove([f"{store}/m1", f"{store}/base"])
            gc([str(store)], grace=0.0)
            file = next(f for f in model.files if f.path == "model.safetensors")
            data = b"".join(d.tobytes() for d in contents(library, file, Pool(1)))
    assert data == (models["m1"] / "model.safetensors").read_bytes()
    gc([str(store)], grace=0.0)
    assert not list((store / "objects").glob("??/*")) and not list((store / "leases").iterdir())


def test_two_writers(tmp_path: Path, models: dict[str, Path]) -> None:
    store = tmp_path / "store"
    add([str(models["base"])], into=str(store))
    with Library.open(store) as library, library.writing():
        for other in (lambda: add([str(models["m1"])], into=str(store)), lambda: gc([str(store)])):
            with pytest.raises(Refused, match="another nett is writing"):
                other()
    add([str(models["m1"])], into=str(store))


def _steps(models: dict[str, Path], store: Path) -> int:
    return int(
        forge().run(
            "support.work:counted", call="store_add", models=[str(p) for p in models.values()], store=str(store)
        )
    )


def test_death_at_the_write_steps_of_an_add(tmp_path: Path, models: dict[str, Path]) -> None:
    """Whatever the moment: what was in the store is whole, and the same command again ends the work."""
    some = {n: models[n] for n in ("base", "m1")}
    steps = _steps(some, tmp_path / "calm")
    assert steps > 40
    for step in sorted({*range(0, steps, 9), *range(steps - 5, steps)}):
        store = tmp_path / f"store{step}"
        arguments = {"call": "store_add", "models": [str(p) for p in some.values()], "store": str(store)}
        forge().start("support.work:counted", die_at=step, torn=step % 2 == 1, **arguments)
        assert forge().wait().code == 77
        if (store / "nett.json").is_file():
            names = set(Library.open(store).names())
            assert names <= some.keys()
            whole(store, models, names, tmp_path / "out")
        forge().run("support.work:counted", **arguments)
        whole(store, models, set(some), tmp_path / "out")
        shutil.rmtree(store)


def test_kills_from_outside(tmp_path: Path, models: dict[str, Path]) -> None:
    chance = random.Random(4)
    store = tmp_path / "store"
    arguments = {"models": [str(p) for p in models.values()], "store": str(store)}
    began = time.monotonic()
    forge().run("support.work:store_add", **arguments)
    lasts = time.monotonic() - began
    shutil.rmtree(store)
    for _ in range(15):
        pid = forge().start("support.work:store_add", **arguments)
        time.sleep(chance.random() * lasts)
        os.kill(pid, signal.SIGKILL)
        forge().wait()
        if (store / "nett.json").is_file():
            whole(store, models, set(Library.open(store).names()), tmp_path / "out")
    forge().run("support.work:store_add", **arguments)
    whole(store, models, set(models), tmp_path / "out")
    gc([str(store)], grace=0.0)
    assert not list((store / "tmp").iterdir())


def sequence(store: Path, models: dict[str, Path], scratch: Path, seed: int, length: int) -> None:
    """Random adds, removals, collections, kills and flipped bits; after each, what should be there is."""
    chance = random.Random(seed)
    there: set[str] = set()
    for _ in range(length):
        action = chance.choice(["add", "add", "remove", "gc", "crash", "flip", "restore"])
        absent, name = sorted(models.keys() - there), chance.choice(sorted(models))
        if action == "add" and absent:
            some = chance.sample(absent, chance.randint(1, len(absent)))
            add([str(models[n]) for n in some], into=str(store))
            there |= set(some)
        elif action == "remove" and there:
            name = chance.choice(sorted(there))
            remove([f"{store}/{name}"])
            there.discard(name)
        elif action == "gc" and store.exists():
            gc([str(store)], grace=0.0)
        elif action == "crash" and absent:
            arguments: dict[str, Any] = {"models": [str(models[n]) for n in absent], "store": str(store)}
            forge().start("support.work:counted", call="store_add", die_at=chance.randrange(60), **arguments)
            forge().wait()
            there = set(Library.open(store).names()) if (store / "nett.json").is_file() else set()
        elif action == "flip" and there:
            victim = chance.choice(sorted((store / "objects").glob("??/*")))
            blob = bytearray(victim.read_bytes())
            blob[chance.randrange(len(blob))] ^= 1 << chance.randrange(8)
            victim.write_bytes(bytes(blob))
            damaged = {n for ns in check_store(store, full=True)[1].values() for n in ns}
            for one in sorted(there):
                try:
                    restore_model(store, one, scratch / one)
                except NettError:
                    assert one in damaged
                    continue
                assert bytes_of(scratch / one) == bytes_of(models[one])
                shutil.rmtree(scratch / one)
            blob_path = victim
            blob_path.unlink()
            gc([str(store)], grace=0.0)
            for one in sorted(damaged):
                remove([f"{store}/{one}"])
            there -= damaged
            gc([str(store)], grace=0.0)
        elif action == "restore" and name in there:
            restore_model(store, name, scratch / name)
            assert bytes_of(scratch / name) == bytes_of(models[name])
            shutil.rmtree(scratch / name)
        if store.exists() and (store / "nett.json").is_file():
            assert set(Library.open(store).names()) == there
    if store.exists() and (store / "nett.json").is_file():
        whole(store, models, there, scratch)


@pytest.mark.parametrize("seed", range(3))
def test_random_sequences(tmp_path: Path, models: dict[str, Path], seed: int) -> None:
    sequence(tmp_path / "store", models, tmp_path / "out", seed, 12)


@pytest.mark.slow
def test_many_random_sequences(tmp_path: Path, models: dict[str, Path]) -> None:
    """As many as NETT_SEQUENCES says."""
    for seed in range(int(os.environ.get("NETT_SEQUENCES", "200"))):
        sequence(tmp_path / f"store{seed}", models, tmp_path / "out", 1000 + seed, 12)
        shutil.rmtree(tmp_path / f"store{seed}", ignore_errors=True)
