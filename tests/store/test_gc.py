"""Nothing that is needed is ever collected; sequences of everything end with every model whole."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from nett.core.errors import Refused
from nett.store.add import add
from nett.store.checking import check_store
from nett.store.gc import gc
from nett.store.library import Library
from nett.store.remove import remove
from nett.store.restoring import contents, restore_model
from support import sequences
from support.deaths import deaths, every_step
from support.forge import forge


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return sequences.family(tmp_path_factory.mktemp("models"))


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
    rest = models.keys() - {"base", "m1"}
    whole(store, models, set(rest), tmp_path / "out")
    remove([f"{store}/{n}" for n in sorted(rest)])
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


@every_step
def test_death_at_the_write_steps_of_an_add(tmp_path: Path, models: dict[str, Path], dense: bool) -> None:
    """Whatever the moment: what was in the store is whole, and the same command again ends the work."""
    some = {n: models[n] for n in ("base", "m1")}
    given = {"call": "store_add", "models": [str(p) for p in some.values()]}
    kinds = forge().run("support.work:kinds", store=str(tmp_path / "calm"), **given)
    assert len(kinds) > 40
    for step in deaths(kinds, every=13, dense=dense):
        store = tmp_path / f"store{step}"
        arguments = given | {"store": str(store)}
        forge().start("support.work:counted", die_at=step, torn=step % 2 == 1, **arguments)
        assert forge().wait().code == 77
        if (store / "nett.json").is_file():
            names = set(Library.open(store).names())
            assert names <= some.keys()
            whole(store, models, names, tmp_path / "out")
        forge().run("support.work:counted", **arguments)
        whole(store, models, set(some), tmp_path / "out")
        shutil.rmtree(store)


@pytest.mark.parametrize("kills", [6, pytest.param(15, marks=pytest.mark.slow)])
def test_kills_from_outside(tmp_path: Path, models: dict[str, Path], kills: int) -> None:
    """An add of three models (of all, where there is time to plan it fifteen times)."""
    models = models if kills > 6 else {name: models[name] for name in ("base", "m1", "m2")}
    chance = random.Random(4)
    store = tmp_path / "store"
    arguments = {"models": [str(p) for p in models.values()], "store": str(store)}
    began = time.monotonic()
    forge().run("support.work:store_add", **arguments)
    lasts = time.monotonic() - began
    shutil.rmtree(store)
    for _ in range(kills):
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


@pytest.mark.parametrize("seed", range(4))
def test_random_sequences(tmp_path: Path, models: dict[str, Path], seed: int) -> None:
    """Adds, removals, collections, readers, deaths, flipped bits, repairs: nothing lost, nothing silently wrong."""
    assert sequences.run(seed, models, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_many_random_sequences(tmp_path: Path) -> None:
    """As many as NETT_SEQUENCES says; 10,000 as PYTHONPATH=tests python -m support.sequences 10000 (no type checks)."""
    said: list[str] = []
    count = int(os.environ.get("NETT_SEQUENCES", "100"))
    assert sequences.many(count, 1000, 2, tmp_path, said.append) == 0, said
