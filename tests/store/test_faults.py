"""A full disk, a power cut, missing permissions, few file handles, two writers: nothing lost, everything said."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import re
import shutil
import stat
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nett.core.checkpoint import open_checkpoint
from nett.core.errors import NettError, ProofFailed, Refused
from nett.core.tiny import fine_tune_of, write_llama
from nett.store.add import add
from nett.store.check import check
from nett.store.checking import check_store
from nett.store.gc import gc
from nett.store.library import FORMAT, Library
from nett.store.remove import remove
from nett.store.restoring import restore_model
from support import faults
from support.cli import nett as cli
from support.forge import forge

Models = dict[str, Path]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    base = write_llama(folder / "base", layers=1, hidden=32, vocab=80, inter=48, heads=2, kv_heads=1)
    tuned = [fine_tune_of(base, folder / f"m{i}", seed=i, density=0.1) for i in (1, 2)]
    return {p.name: p for p in (base, *tuned)}


def whole(store: Path, models: Models, names: set[str], scratch: Path) -> None:
    checks, hit = check_store(store, full=True, threads=1)
    assert {c["name"] for c in checks} == {f"model {n}" for n in names} and not hit, (checks, hit)
    for name in names:
        restore_model(store, name, scratch / name, threads=1)
        assert bytes_of(scratch / name) == bytes_of(models[name])
        shutil.rmtree(scratch / name)


def _damage(store: Path) -> None:
    with Library.open(store) as library:
        part = max(library.model("base").tensors.values(), key=lambda p: p.nbytes)
    victim = next((store / "objects").rglob(part.object))
    os.truncate(victim, victim.stat().st_size - 3)


def _prepared(folder: Path, models: Models, what: str) -> tuple[Path, Callable[[Path], Any], set[str], set[str]]:
    """A store, work to be done on it, and the models that it holds before and after."""
    store = folder / "store"
    if what == "add":
        add([str(models["base"])], into=str(store), threads=1)
        rest = [str(models["m1"]), str(models["m2"])]
        return store, lambda s: add(rest, into=str(s), threads=1), {"base"}, set(models)
    if what == "first add":
        store.mkdir()
        return store, lambda s: add([str(models["base"])], into=str(s), threads=1), set(), {"base"}
    add([str(m) for m in models.values()], into=str(store), threads=1)
    if what == "remove":
        return store, lambda s: remove([f"{s}/m1"]), set(models), set(models) - {"m1"}
    if what == "repair":
        return store, lambda s: (_damage(s), check([str(s)], repair=True, threads=1)), set(models), set(models)
    with Library.open(store) as library:
        base = next(m.name for m in library.models() if m.base is None)
    remove([f"{store}/{base}"])
    rest_of = set(models) - {base}
    return store, lambda s: gc([str(s)], grace=0.0, recode="always", threads=1), rest_of, rest_of


every_step = pytest.mark.parametrize("dense", [False, pytest.param(True, marks=pytest.mark.slow)])
PHASES = ("first add", "add", "remove", "gc", "repair")


@every_step
@pytest.mark.parametrize("what", PHASES)
def test_a_full_disk_in_every_phase(tmp_path: Path, models: Models, what: str, dense: bool) -> None:
    """From any step on nothing fits: said with the system's words, no temporary left, every model whole."""
    start, work, before, after = _prepared(tmp_path, models, what)
    shutil.copytree(start, tmp_path / "calm")
    with faults.full_disk(tmp_path / "calm", 10**9) as asked:
        work(tmp_path / "calm")
    assert len(asked) >= (1 if what == "remove" else 12), asked
    some = sorted({*range(1, len(asked), 1 + len(asked) // 3), len(asked) - 1})
    for step in range(len(asked)) if dense else some:
        store = tmp_path / f"store{step}"
        shutil.copytree(start, store)
        code = errno.EDQUOT if step % 2 else errno.ENOSPC
        try:
            with faults.full_disk(store, step, code):
                work(store)
            done = True  # what failed was the log, which nothing depends on
        except NettError as error:
            assert os.strerror(code) in error.what or isinstance(error, ProofFailed), error
            done = False
        assert not list((store / "tmp").iterdir()) if (store / "tmp").is_dir() else True
        if what == "repair":
            check([str(store)], repair=True, threads=1)
        if (store / "nett.json").is_file():
            names = set(Library.open(store).names())
            assert before & after <= names <= before | after and (not done or names == after)
            whole(store, models, names, tmp_path / "out")
        else:
            assert not before
        if not done and not (what == "remove" and names == after):  # gone, but perhaps not surely yet
            work(store)
        whole(store, models, after, tmp_path / "out")
        shutil.rmtree(store)


@every_step
@pytest.mark.parametrize("what", ["first add", "add", "gc", "repair"])
def test_power_cuts(tmp_path: Path, models: Models, what: str, dense: bool) -> None:
    """Names and bytes that were not synced are lost at will: every model that was there is whole, and the next run
    ends the work."""
    start, work, before, after = _prepared(tmp_path, models, what)
    shutil.copytree(start, tmp_path / "calm")
    with faults.full_disk(tmp_path / "calm", 10**9) as asked:
        work(tmp_path / "calm")
    some = {len(asked) // 3, len(asked) * 2 // 3, len(asked) - 3}
    for step in range(len(asked)) if dense else sorted(some):
        ground, left = tmp_path / f"disk{step}", tmp_path / f"left{step}"
        shutil.copytree(start, ground / "store")
        cut = faults.cut_power(
            ground, step, partial(work, ground / "store"), left, random.Random(1000 * step + len(what))
        )
        assert cut
        store = left / "store"
        if what == "first add" and not (store / "nett.json").is_file():
            assert not before
            shutil.rmtree(left)
            continue
        if what == "repair":
            check([str(store)], repair=True, threads=1)
        names = set(Library.open(store).names())
        assert before & after <= names <= before | after
        whole(store, models, names, tmp_path / "out")
        work(store)
        whole(store, models, after, tmp_path / "out")
        shutil.rmtree(left)
        shutil.rmtree(ground)


def test_what_an_add_has_said_survives_a_power_cut(tmp_path: Path, models: Models) -> None:
    """When it returns, all of it is on disk: the folder of the store itself too."""
    ground, chance = tmp_path / "disk", random.Random(5)
    ground.mkdir()
    platters = faults.Platters(ground)

    def after(name: str, first: Any) -> None:
        if name in ("fsync", "fdatasync"):
            platters.synced(first)

    with faults.stepwise(ground, lambda name, first: None, after):
        add([str(m) for m in models.values()], into=str(ground / "deep" / "store"), name=None, threads=1)
    for i in range(4):
        platters.survive(tmp_path / f"left{i}", chance)
        whole(tmp_path / f"left{i}" / "deep" / "store", models, set(models), tmp_path / "out")
    platters.close()


# Who may do what.
def test_two_writers_at_once(tmp_path: Path, models: Models) -> None:
    """The second is refused by name and harms nothing; the first ends well."""
    store = tmp_path / "store"
    add([str(models["base"])], into=str(store))
    gate, refused = threading.Event(), []

    def second() -> None:
        for words in (
            ["store", "add", str(models["m2"]), "--into", str(store)],
            ["store", "gc", str(store)],
            ["store", "remove", f"{store}/base"],
            ["store", "add", str(models["m1"]), "--into", str(store)],
        ):
            refused.append(forge().run("support.work:spoken", words=words))
        gate.set()

    asked: list[str] = []

    def step(name: str, first: Any) -> None:
        asked.append(name)
        if len(asked) == 10:
            second()

    with faults.stepwise(store, step):
        add([str(models["m1"])], into=str(store), threads=1)
    assert gate.is_set()
    for code, _, err in refused:
        assert code == 3 and "another nett is writing to this store" in err
    whole(store, models, {"base", "m1"}, tmp_path / "out")


def test_many_readers_and_a_collector(tmp_path: Path, models: Models) -> None:
    """Readers that begin at any time, while everything else is removed, coded anew and collected."""
    store = tmp_path / "store"
    add([str(m) for m in models.values()], into=str(store))
    with open_checkpoint(models["m1"]) as plain:
        right = {n: plain.read(n).tobytes() for n in plain.tensors}
    wrong: list[str] = []
    stop = threading.Event()

    def reader() -> None:
        while not stop.is_set():
            with open_checkpoint(store / "m1") as stored:
                wrong.extend(n for n in right if stored.read(n).tobytes() != right[n])

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            remove([f"{store}/base", f"{store}/m2"])
            gc([str(store)], grace=0.0, recode="always")
            add([str(models["base"]), str(models["m2"])], into=str(store))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    whole(store, models, set(models), tmp_path / "out")
    assert not list((store / "leases").iterdir())


def test_a_lease_lasts_as_long_as_the_checkpoint_is_open(tmp_path: Path, models: Models) -> None:
    store = tmp_path / "store"
    add([str(models["base"])], into=str(store))
    opened = open_checkpoint(store / "base")
    (lease,) = (store / "leases").iterdir()
    with lease.open("rb") as file, pytest.raises(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    opened.close()
    assert not list((store / "leases").iterdir())


def test_a_lease_that_is_not_whole_yet_is_left_alone(tmp_path: Path, models: Models) -> None:
    store = tmp_path / "store"
    add([str(models["base"])], into=str(store))
    (store / "leases" / ".beginning").write_text("")
    (store / "leases" / "dead").write_text("0" * 64)
    gc([str(store)], grace=0.0)
    assert {p.name for p in (store / "leases").iterdir()} == {".beginning"}


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def _open_to_all(path: Path) -> None:
    for folder in (path, *path.parents):
        if folder == Path("/tmp") or folder == folder.parent:
            break
        os.chmod(folder, folder.stat().st_mode | 0o755)


@needs_root
def test_another_user(tmp_path: Path, models: Models) -> None:
    """He reads a store that he may not write, and is told what he may not do."""
    store, open_folder = tmp_path / "store", tmp_path / "open"
    add([str(m) for m in models.values()], into=str(store))
    open_folder.mkdir(mode=0o777)
    os.chmod(open_folder, 0o777)
    _open_to_all(tmp_path)
    _open_to_all(models["m1"])
    state = bytes_of(store)

    def nobody(*words: object) -> tuple[int, str, str]:
        said: tuple[int, str, str] = tuple(forge().run("support.work:unprivileged", words=[str(w) for w in words]))
        return said

    said = nobody("restore", store / "m1", "--out", open_folder / "m1")
    assert said[0] == 0, said
    assert bytes_of(open_folder / "m1") == bytes_of(models["m1"])
    for words in (("ls", store), ("log", store), ("check", store)):
        assert nobody("store", *words)[0] == 0
    assert nobody("diff", store / "m1", store / "m2")[0] == 0
    for words in (("add", models["m1"], "--into", store, "--name", "x"), ("gc", store), ("remove", f"{store}/m1")):
        code, _, err = nobody("store", *words)
        assert code == 3 and "Permission denied" in err and str(store) in err, err
    assert bytes_of(store) == state
    code, _, err = nobody("store", "add", models["m1"], "--into", tmp_path / "new")
    assert code == 3 and "Permission denied" in err
    os.chmod(models["m1"] / "model.safetensors", 0o600)
    try:
        code, _, err = nobody("store", "add", models["m1"], "--into", open_folder / "mine")
        assert code == 3 and "Permission denied" in err and "model.safetensors" in err, err
    finally:
        os.chmod(models["m1"] / "model.safetensors", 0o644)
    locked = open_folder / "locked"
    shutil.copytree(models["m1"], locked)
    (locked / "inside").mkdir(mode=0o700)
    code, _, err = nobody("store", "add", locked, "--into", open_folder / "mine")
    assert code == 3 and "inside" in err and "cannot be read" in err
    (object_,) = list((store / "objects").glob("??/*"))[:1]
    os.chmod(object_, 0o600)
    code, _, err = nobody("store", "check", store)
    assert code == 4 and object_.name in err


def test_a_medium_that_cannot_be_written(tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every act of writing fails as on a read-only file system; reading works, and what writes is refused."""
    store = tmp_path / "store"
    add([str(m) for m in models.values()], into=str(store))
    with faults.full_disk(store, 0, errno.EROFS):
        restore_model(store, "m1", tmp_path / "m1")
        with open_checkpoint(store / "m2") as opened:
            assert all(opened.read(n).size for n in opened.tensors)
        assert not check_store(store, full=True)[1]
        for what in (
            lambda: add([str(models["m1"])], into=str(store), name="x"),
            lambda: gc([str(store)]),
            lambda: remove([f"{store}/m1"]),
        ):
            with pytest.raises(Refused, match="Read-only file system"):
                what()
    assert bytes_of(tmp_path / "m1") == bytes_of(models["m1"])


def test_few_file_handles(tmp_path: Path, models: Models) -> None:
    """Many objects with few descriptors: read right; and where there are none at all, said so and nothing deleted."""
    wide = write_llama(tmp_path / "wide", layers=12, hidden=32, vocab=80, inter=48, heads=2, kv_heads=1)
    tuned = fine_tune_of(wide, tmp_path / "tuned", seed=1)
    store = tmp_path / "store"
    add([str(wide), str(tuned)], into=str(store))
    few = partial(forge().run, "support.work:few_handles", limit=24)
    code, _, err = few(words=["restore", str(store / "tuned"), "--out", str(tmp_path / "out")])
    assert code == 0, err
    assert bytes_of(tmp_path / "out") == bytes_of(tuned)
    code, _, err = few(words=["store", "check", str(store)])
    assert code == 0, err
    cli("store", "remove", f"{store}/wide").succeeded()
    code, _, err = few(words=["store", "gc", str(store), "--grace", "0", "--recode", "always"])
    assert code == 0, err
    whole(store, {"tuned": tuned}, {"tuned"}, tmp_path / "back")


# Other formats of the store, other file systems.
@pytest.mark.parametrize(("format_", "answer"), [(FORMAT + 1, f"format {FORMAT + 1}"), (99, "format 99")])
def test_a_newer_store(tmp_path: Path, models: Models, format_: int, answer: str) -> None:
    store = tmp_path / "store"
    add([str(models["base"])], into=str(store))
    record = json.loads((store / "nett.json").read_text())
    (store / "nett.json").write_text(json.dumps(record | {"store_format": format_}))
    before = bytes_of(store)
    for words in (
        ["store", "ls", str(store)], ["store", "check", str(store)], ["store", "gc", str(store)],
        ["store", "add", str(models["m1"]), "--into", str(store)], ["store", "remove", f"{store}/base"],
        ["restore", f"{store}/base", "--out", str(tmp_path / "out")], ["diff", f"{store}/base", str(models["base"])],
    ):  # fmt: skip
        cli(*words).failed(3, answer, f"reads up to {FORMAT}")
    assert bytes_of(store) == before


@pytest.mark.parametrize("told", ["1", None, 0, -3, True, 1.5])
def test_a_format_that_is_no_number(tmp_path: Path, models: Models, told: Any) -> None:
    store = tmp_path / "store"
    add([str(models["base"])], into=str(store))
    record = json.loads((store / "nett.json").read_text())
    (store / "nett.json").write_text(json.dumps(record | {"store_format": told}))
    cli("store", "ls", str(store)).failed(4, "store_format", repr(told))


def test_a_newer_object(tmp_path: Path, models: Models) -> None:
    store = tmp_path / "store"
    add([str(models["base"])], into=str(store))
    with Library.open(store) as library:
        part = max(library.model("base").tensors.values(), key=lambda p: p.nbytes)
    victim = next((store / "objects").rglob(part.object))
    victim.write_bytes(re.sub(rb'"nett_object":"\d"', b'"nett_object":"7"', victim.read_bytes()))
    cli("store", "check", str(store)).failed(4, "version 7")
    cli("restore", f"{store}/base", "--out", str(tmp_path / "out")).failed(3, "version 7")


def test_a_file_system_without_locks(tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where flock is not known, nothing is written, since nobody would be kept out; reading works."""
    store = tmp_path / "store"
    add([str(m) for m in models.values()], into=str(store))
    real = fcntl.flock

    def without(fd: Any, operation: int) -> None:
        if not os.readlink(f"/proc/self/fd/{fd if isinstance(fd, int) else fd.fileno()}").startswith(str(store)):
            return real(fd, operation)
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(Refused, match="cannot be locked: No locks available"):
        add([str(models["m1"])], into=str(store), name="x")
    with pytest.raises(Refused, match="cannot be locked"):
        gc([str(store)])
    restore_model(store, "m1", tmp_path / "m1")
    assert bytes_of(tmp_path / "m1") == bytes_of(models["m1"])
    assert not list((store / "leases").iterdir())
    monkeypatch.setattr(fcntl, "flock", real)


# What a folder may hold.
def test_what_cannot_be_given_back_is_refused(tmp_path: Path, models: Models) -> None:
    store = tmp_path / "store"
    outside = shutil.copytree(models["m1"], tmp_path / "outside")
    for name, make in {
        "a link to a folder": lambda p: p.symlink_to(outside),
        "a link to nothing": lambda p: p.symlink_to(tmp_path / "nowhere"),
        "a link to itself": lambda p: p.symlink_to(p.name),
        "neither a file nor a folder": os.mkfifo,
    }.items():
        folder = shutil.copytree(models["base"], tmp_path / name.replace(" ", "-"))
        make(folder / "odd")
        said = cli("store", "add", str(folder), "--into", str(store)).failed(3, "odd")
        assert name in said.err or name == "a link to itself"
        assert not (store / "models").is_dir() or not list((store / "models").iterdir())
    cli("store", "add", str(tmp_path / "neither-a-file-nor-a-folder" / "odd"), "--into", str(store)).failed(3, "odd")


def test_a_link_to_a_file_comes_back_as_the_file(tmp_path: Path, models: Models) -> None:
    """As in a hub cache, whose snapshots are links out of the folder."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for file in models["m1"].iterdir():
        (folder / file.name).symlink_to(file)
    add([str(folder)], into=str(tmp_path / "store"))
    restore_model(tmp_path / "store", "snapshot", tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(models["m1"])
    assert not any(p.is_symlink() for p in (tmp_path / "out").iterdir())


def test_odd_names_and_empty_files(tmp_path: Path) -> None:
    """Names that are no UTF-8, with newlines, quotes and dots; files of no bytes; weights under such names."""
    folder = tmp_path / "odd"
    folder.mkdir()
    names = [
        b"\xff\xfe.txt",
        "é\n.txt".encode(),
        b'"quoted".json',
        b"..hidden",
        b" ",
        b"a\\b",
        b"empty",
        b"model.safetensors",
    ]
    for i, name in enumerate(names):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(b"" if i % 3 == 0 else bytes(range(i)))
    (folder / "sub\n").mkdir()
    write_llama(folder / "sub\n", layers=1, hidden=32, vocab=80, inter=48, heads=2, kv_heads=1)
    (folder / "sub\n" / "\udce9.safetensors").write_bytes((folder / "sub\n" / "model.safetensors").read_bytes())
    store = tmp_path / "store"
    cli("store", "add", str(folder), "--into", str(store)).succeeded()
    cli("store", "check", str(store)).succeeded()
    cli("store", "ls", str(store)).succeeded()
    restore_model(store, "odd", tmp_path / "out")
    there = {os.fsencode(str(f.relative_to(folder))): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    back = {
        os.fsencode(str(f.relative_to(tmp_path / "out"))): f.read_bytes()
        for f in (tmp_path / "out").rglob("*")
        if f.is_file()
    }
    assert back == there and len(back) > len(names)


def test_modes_are_kept(tmp_path: Path, models: Models) -> None:
    folder = shutil.copytree(models["base"], tmp_path / "m")
    os.chmod(folder / "config.json", 0o400)
    os.chmod(folder / "tokenizer.json", 0o755)
    add([str(folder)], into=str(tmp_path / "store"))
    restore_model(tmp_path / "store", "m", tmp_path / "out")
    for name, mode in (("config.json", 0o400), ("tokenizer.json", 0o755)):
        assert stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) == mode


# Damage.
@pytest.mark.parametrize("how", ["empty", "short", "long", "header cut", "zeros", "a folder", "other"])
def test_repair_of_odd_damage(tmp_path: Path, models: Models, how: str) -> None:
    """Found, named, mended from the originals; the damaged one is kept aside."""
    store = tmp_path / "store"
    add([str(m) for m in models.values()], into=str(store))
    with Library.open(store) as library:
        root = next(m.name for m in library.models() if m.base is None)
        part = max(library.model(root).tensors.values(), key=lambda p: p.nbytes)
    victim = next((store / "objects").rglob(part.object))
    blob = victim.read_bytes()
    if how == "a folder":
        victim.unlink()
        victim.mkdir()
    elif how == "other":
        other = next(f for f in (store / "objects").glob("??/*") if f != victim)
        victim.write_bytes(other.read_bytes())
    else:
        cut = {"empty": b"", "short": blob[:-1], "long": blob + b"\0" * 5000, "header cut": blob[:11]}
        victim.write_bytes(cut.get(how, b"\0" * len(blob)))
    cli("store", "check", str(store)).failed(4, part.object)
    if how == "a folder":
        cli("store", "check", str(store), "--repair").failed(3, part.object)
        victim.rmdir()
    cli("store", "check", str(store), "--repair").succeeded()
    assert how == "a folder" or (store / "quarantine" / part.object).exists()
    whole(store, models, set(models), tmp_path / "out")


def test_add_mends_what_it_relies_on(tmp_path: Path, models: Models) -> None:
    """A damaged object that a new model shares is not trusted because it is there."""
    store = tmp_path / "store"
    add([str(models["base"])], into=str(store))
    copy = shutil.copytree(models["base"], tmp_path / "copy")
    with Library.open(store) as library:
        part = max(library.model("base").tensors.values(), key=lambda p: p.nbytes)
    victim = next((store / "objects").rglob(part.object))
    blob = bytearray(victim.read_bytes())
    blob[-9] ^= 16
    victim.write_bytes(bytes(blob))
    assert add([str(copy)], into=str(store))["models"][0]["stored"] > 0
    whole(store, models | {"copy": copy}, {"base", "copy"}, tmp_path / "out")


def test_a_damaged_base_is_no_obstacle(tmp_path: Path, models: Models) -> None:
    """A fine-tune of a model whose objects are damaged is coded by itself, and is whole."""
    store = tmp_path / "store"
    add([str(models["base"])], into=str(store))
    with Library.open(store) as library:
        digests = {p.object for p in library.model("base").tensors.values()}
    for digest in digests:
        victim = next((store / "objects").rglob(digest))
        blob = bytearray(victim.read_bytes())
        blob[-2] ^= 1
        victim.write_bytes(bytes(blob))
    add([str(models["m1"])], into=str(store))
    restore_model(store, "m1", tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(models["m1"])


@pytest.mark.parametrize("kind", ["plain", "difference", "text"])
def test_any_flipped_bit_of_an_object(tmp_path: Path, models: Models, kind: str) -> None:
    """Bits of header and body: an error of nett's own, or the bytes that were stored; never others, never a crash."""
    store = tmp_path / "store"
    add([str(m) for m in models.values()], into=str(store))
    with Library.open(store) as library:
        digests = sorted(set().union(*(m.objects for m in library.models())))
        opened = [library.objects.opened(d) for d in digests]
        forms = {"plain": "rotated plain", "difference": "difference xor folded packed", "text": "text"}[kind]
        one = next(
            o for o in opened if (o.base is not None) == (kind == "difference") and (o.mode.form in forms or o.base)
        )
        right = library.objects.read(one.digest, 0, one.nbytes).tobytes()
        path, nbytes, digest = one.path, one.nbytes, one.digest
    blob = path.read_bytes()
    header = 8 + int.from_bytes(blob[:8], "little")
    chance = random.Random(kind)
    places = [(at, bit) for at in range(header) for bit in range(8)]
    places = chance.sample(places, min(300, len(places))) + [
        (chance.randrange(header, len(blob)), chance.randrange(8)) for _ in range(60)
    ]
    refused = 0
    for at, bit in places:
        flipped = bytearray(blob)
        flipped[at] ^= 1 << bit
        path.write_bytes(bytes(flipped))
        with Library.open(store) as library:
            try:
                assert library.objects.read(digest, 0, nbytes).tobytes() == right
            except NettError:
                refused += 1
    assert refused > 0.5 * len(places)
    path.write_bytes(blob)
    whole(store, models, set(models), tmp_path / "out")


def test_a_flipped_record(tmp_path: Path, models: Models) -> None:
    """Any bit of a model's record: refused, or the model is the same; and the model can be taken out and added again."""
    store = tmp_path / "store"
    add([str(models["base"])], into=str(store))
    record = store / "models" / "base.json"
    blob = record.read_bytes()
    right = Library.open(store).model("base")
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        flipped = bytearray(blob)
        flipped[chance.randrange(len(blob))] ^= 1 << chance.randrange(8)
        record.write_bytes(bytes(flipped))
        try:
            assert Library.open(store).model("base") == right
        except ProofFailed:
            refused += 1
    assert refused > 250
    record.write_bytes(blob.replace(b'"mode":420', b'"mode":421'))
    cli("store", "check", str(store)).failed(4, "not readable")
    cli("restore", f"{store}/base", "--out", str(tmp_path / "out")).failed(4, "not readable", "nett store remove")
    assert "was not readable" in cli("store", "remove", f"{store}/base").succeeded().out
    assert add([str(models["base"])], into=str(store))["models"][0]["stored"] == 0
    whole(store, models, {"base"}, tmp_path / "out")
