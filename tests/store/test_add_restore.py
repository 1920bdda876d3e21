"""Models come back from a store byte for byte; tensors are kept once, fine-tunes as differences."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nett
from nett.core.checkpoint import open_checkpoint
from nett.core.errors import NettError, ProofFailed, Refused, UsageError
from nett.core.segments import segments_of
from nett.core.tiny import fine_tune_of, write_llama
from nett.store.add import add
from nett.store.library import Library
from nett.store.restoring import restore_model
from support.cli import nett as cli
from support.tensors import write_tensors


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def stored_bytes(store: Path) -> int:
    return sum(f.stat().st_size for f in (store / "objects").rglob("*") if f.is_file())


@pytest.fixture
def family(tmp_path: Path) -> list[Path]:
    """A base, two fine-tunes of it and one of the first fine-tune."""
    base = write_llama(tmp_path / "base", layers=2, hidden=64, vocab=200)
    first = fine_tune_of(base, tmp_path / "first", seed=1)
    return [
        base,
        first,
        fine_tune_of(base, tmp_path / "second", seed=2),
        fine_tune_of(first, tmp_path / "third", seed=3),
    ]


def test_a_family(tmp_path: Path, family: list[Path]) -> None:
    """Everything comes back, times and modes too; a fine-tune takes a fraction of what it takes by itself."""
    os.chmod(family[1] / "config.json", 0o640)
    alone = add([str(family[1])], into=str(tmp_path / "alone"))["models"][0]["stored"]
    done = add([str(p) for p in family], into=str(tmp_path / "store"))
    by_name = {m["name"]: m for m in done["models"]}
    assert by_name["base"]["base"] is None and by_name["third"]["base"] == "first"
    assert by_name["first"]["base"] == by_name["second"]["base"] == "base"
    assert by_name["first"]["stored"] < 0.6 * alone
    for model in family:
        out = tmp_path / "out" / model.name
        restore_model(tmp_path / "store", model.name, out)
        assert bytes_of(out) == bytes_of(model)
        for file in model.iterdir():
            there, here = (out / file.name).stat(), file.stat()
            assert (there.st_mode, there.st_mtime_ns) == (here.st_mode, here.st_mtime_ns)


def test_the_order_of_adding_does_not_matter_for_what_comes_back(tmp_path: Path, family: list[Path]) -> None:
    store = tmp_path / "store"
    for model in (family[2], family[3], family[0], family[1]):
        add([str(model)], into=str(store))
    for model in family:
        restore_model(store, model.name, tmp_path / "out" / model.name)
        assert bytes_of(tmp_path / "out" / model.name) == bytes_of(model)


def test_what_is_there_already_costs_nothing(tmp_path: Path, family: list[Path]) -> None:
    store = tmp_path / "store"
    add([str(family[0])], into=str(store))
    before = stored_bytes(store)
    again = add([str(family[0])], into=str(store))
    assert "in the store already" in again["say"][0] and not again["models"]
    copy = shutil.copytree(family[0], tmp_path / "copy")
    assert add([str(copy)], into=str(store))["models"][0]["stored"] == 0
    assert stored_bytes(store) == before
    (family[0] / "config.json").write_text("{}")
    with pytest.raises(Refused, match="holds another model by the name 'base'"):
        add([str(family[0])], into=str(store))
    assert add([str(family[0])], into=str(store), name="base-2")["models"][0]["name"] == "base-2"


def test_tensors_are_kept_once_across_shardings_and_formats(tmp_path: Path) -> None:
    """One file, two shards, a torch file of the same tensors: the tensors' bytes are stored once."""
    torch = pytest.importorskip("torch")
    whole = write_llama(tmp_path / "whole", layers=1, hidden=64, vocab=300)
    shards = write_llama(tmp_path / "shards", layers=1, hidden=64, vocab=300, shards=3)
    with open_checkpoint(whole) as opened:
        state = {
            n: torch.from_numpy(opened.read(n).view(np.int16).reshape(i.shape).copy()).view(torch.bfloat16)
            if i.dtype.name == "BF16"
            else torch.from_numpy(opened.read(n).reshape(i.shape).copy())
            for n, i in opened.tensors.items()
        }
    torch.save(state, tmp_path / "pytorch_model.bin")
    store = tmp_path / "store"
    add([str(whole)], into=str(store))
    before = stored_bytes(store)
    for other in (shards, tmp_path / "pytorch_model.bin"):
        add([str(other)], into=str(store))
    assert stored_bytes(store) - before < 0.12 * before  # headers, and tensors too small for an object of their own
    restore_model(store, "pytorch_model.bin", tmp_path / "out")
    assert (tmp_path / "out" / "pytorch_model.bin").read_bytes() == (tmp_path / "pytorch_model.bin").read_bytes()


def test_the_limit_on_restoring(tmp_path: Path, family: list[Path]) -> None:
    done = add([str(p) for p in family], into=str(tmp_path / "store"), max_restore_seconds=0.0)
    assert all(m["base"] is None for m in done["models"])
    one = add([str(p) for p in family], into=str(tmp_path / "other"), deltas=False)
    assert all(m["base"] is None for m in one["models"])


_dtypes = st.sampled_from(["F32", "BF16", "F16", "F64", "I64", "I8", "U8", "BOOL", "F8_E4M3"])
_shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)


@settings(max_examples=15)
@given(tensors=st.dictionaries(st.text("ab.é/", min_size=1, max_size=6), st.tuples(_dtypes, _shapes), max_size=5),
       seed=st.integers(0, 99))  # fmt: skip
def test_any_safetensors_file(tmp_path: Path, tensors: dict[str, Any], seed: int) -> None:
    """0-d, empty, any type, any bits: the file comes back, and reads the same from the store."""
    rng = np.random.default_rng(seed)
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    file = folder / "in" / "model.safetensors"
    file.parent.mkdir(parents=True)
    sizes = {"F64": 8, "I64": 8, "F32": 4, "BF16": 2, "F16": 2}
    header, at, blob = {}, 0, b""
    for name, (dtype, shape) in tensors.items():
        data = rng.integers(0, 256, int(np.prod(shape)) * sizes.get(dtype, 1), np.uint8).tobytes()
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at, blob = at + len(data), blob + data
    text = json.dumps(header).encode() + b" " * int(rng.integers(9))
    file.write_bytes(len(text).to_bytes(8, "little") + text + blob)
    add([str(file)], into=str(folder / "store"), name="m")
    restore_model(folder / "store", "m", folder / "out")
    assert (folder / "out" / "model.safetensors").read_bytes() == file.read_bytes()
    with open_checkpoint(file) as plain, open_checkpoint(folder / "store" / "m") as stored:
        assert plain.tensors.keys() == stored.tensors.keys()
        for name in plain.tensors:
            assert plain.read(name).tobytes() == stored.read(name).tobytes()
            assert plain.tensors[name].shape == stored.tensors[name].shape


@given(st.binary(max_size=200), st.sampled_from(["x.safetensors", "x.gguf", "x.bin", "x.pt", "x.txt"]))
def test_files_that_are_not_what_they_are_called(tmp_path: Path, blob: bytes, name: str) -> None:
    """Segments cover every byte once, whatever the file holds."""
    file = tmp_path / name
    file.write_bytes(blob)
    segments = segments_of(file, len(blob))
    assert [s.offset for s in segments] == [sum(s.nbytes for s in segments[:i]) for i in range(len(segments))]
    assert sum(s.nbytes for s in segments) == len(blob)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """A torch file that would run code is kept and comes back; the code does not run."""

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "m.bin").write_bytes(pickle.dumps(Bomb()))
    add([str(tmp_path / "m.bin")], into=str(tmp_path / "store"))
    restore_model(tmp_path / "store", "m.bin", tmp_path / "out")
    assert (tmp_path / "out" / "m.bin").read_bytes() == (tmp_path / "m.bin").read_bytes()
    assert not (tmp_path / "ran").exists()


def test_reading_from_the_store(tmp_path: Path, family: list[Path]) -> None:
    """nett.load, scan, diff and merge read a model where it lies."""
    store = tmp_path / "store"
    add([str(p) for p in family], into=str(store))
    loaded, plain = nett.load(store / "third"), nett.load(family[3])
    assert loaded.keys() == plain.keys() and all(np.array_equal(loaded[n], plain[n]) for n in plain)
    cli("diff", str(store / "first"), str(family[1])).succeeded()
    words = ["merge", "linear", str(store / "first"), str(store / "second"), "--no-speak", "--out"]
    cli(*words, str(tmp_path / "merged")).succeeded()
    cli("merge", "linear", str(family[1]), str(family[2]), "--no-speak", "--out", str(tmp_path / "plain")).succeeded()
    assert (tmp_path / "merged/model.safetensors").read_bytes() == (tmp_path / "plain/model.safetensors").read_bytes()
    cli("diff", str(store / "frist"), str(family[1])).failed(3, "holds no model 'frist'", "Did you mean 'first'")


def test_diff_inside_a_store(tmp_path: Path, family: list[Path]) -> None:
    """By the store's names, mixed with paths, with the page; the figures are those of the folders."""
    store, page = tmp_path / "store", tmp_path / "diff.html"
    add([str(p) for p in family], into=str(store))
    words = ["diff", "first", "third", "--store", str(store), "--json", str(tmp_path / "ours.json")]
    cli(*words, "--html", str(page)).succeeded()
    cli("diff", str(family[1]), str(family[3]), "--json", str(tmp_path / "plain.json")).succeeded()
    ours, plain = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("ours", "plain"))
    assert ours["a"] == "first" and ours["tensors"] == plain["tensors"] and ours["layers"] == plain["layers"]
    assert ours["total"]["relative_l2"] > 0 and page.read_text().count("<svg") >= 3
    same = cli("diff", "third", str(family[3]), "--store", str(store)).succeeded().out
    assert "bit for bit" in same
    cli("diff", "frist", "third", "--store", str(store)).failed(3, "holds no model 'frist'", "Did you mean 'first'")
    cli("diff", "first", "third", "--store", str(family[0])).failed(3, "carries no receipt")


def test_merging_from_a_store_brings_the_tokenizer(tmp_path: Path, family: list[Path]) -> None:
    store, out = tmp_path / "store", tmp_path / "merged"
    add([str(p) for p in family[:3]], into=str(store))
    models = [str(store / "first"), str(store / "second")]
    cli("merge", "linear", *models, "--no-speak", "--out", str(out)).succeeded()
    assert (out / "tokenizer.json").read_bytes() == (family[1] / "tokenizer.json").read_bytes()


def test_the_command_line(tmp_path: Path, family: list[Path]) -> None:
    store = tmp_path / "store"
    words = [*map(str, family), "--into", str(store)]
    assert "would add first" in cli("store", "add", *words, "--dry-run").succeeded().out and not store.exists()
    assert "as a difference to base" in cli("store", "add", *words).succeeded().out
    listed = cli("store", "ls", str(store)).succeeded().out
    assert "4 model(s)" in listed and "third" in listed
    assert json.loads(cli("store", "ls", str(store), "--json").succeeded().out)[0]["name"] == "base"
    assert cli("store", "log", str(store)).succeeded().out.count("add: model") == 4
    cli("restore", str(store / "third"), "--out", str(tmp_path / "out")).succeeded()
    assert bytes_of(tmp_path / "out") == bytes_of(family[3])
    cli("restore", str(store), "--out", str(tmp_path / "out2")).failed(3, "name one")
    cli("restore", str(store / "third"), "--out", str(tmp_path / "out")).failed(3, "is not empty")
    cli("verify", str(store)).succeeded()
    cli("store", "add", str(family[0])).failed(2, "--into")
    cli("store", "add", str(tmp_path / "none"), "--into", str(store)).failed(3, "no such file")
    cli("store", "ls", str(family[0])).failed(3, "nett.json")


def test_bad_calls(tmp_path: Path, family: list[Path]) -> None:
    store = tmp_path / "store"
    with pytest.raises(UsageError, match="two of the models are called"):
        add([str(family[0]), str(family[0])], into=str(store))
    with pytest.raises(UsageError, match="name at least one"):
        add([], into=str(store))
    for name in ("../x", "/x", ".x", "a//b", "a/../b", ""):
        with pytest.raises(Refused, match="cannot name a model"):
            add([str(family[0])], into=str(store), name=name)
    with pytest.raises(Refused, match="one within the other"):
        add([str(tmp_path)], into=str(store))
    with pytest.raises(Refused, match="not an empty folder"):
        add([str(family[0])], into=str(family[1]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="holds no file"):
        add([str(tmp_path / "empty")], into=str(store))
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling" / "model.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Refused, match="link to nothing"):
        add([str(tmp_path / "dangling")], into=str(store))


def test_a_newer_store_is_refused_by_its_number(tmp_path: Path, family: list[Path]) -> None:
    store = tmp_path / "store"
    add([str(family[0])], into=str(store))
    record = json.loads((store / "nett.json").read_text())
    (store / "nett.json").write_text(json.dumps(record | {"store_format": 99}))
    with pytest.raises(Refused, match="store of format 99"):
        Library.open(store)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, family: list[Path], monkeypatch: Any) -> None:
    """Between hashing and coding: refused, and the store is as before."""
    store = tmp_path / "store"
    add([str(family[0])], into=str(store))
    before = bytes_of(store / "models")
    from nett.store import draft

    real = draft.read_file

    def meddling(path: Path, name: str) -> Any:
        found = real(path, name)
        if path.name == "model.safetensors":
            with path.open("r+b") as file:
                file.seek(-100, os.SEEK_END)
                file.write(b"\1" * 50)
        return found

    monkeypatch.setattr(draft, "read_file", meddling)
    with pytest.raises(Refused, match="changed while it was being read"):
        add([str(family[1])], into=str(store))
    assert bytes_of(store / "models") == before and Library.open(store).names() == ["base"]


@pytest.mark.parametrize("what", ["flip", "cut", "gone"])
def test_damage_is_found_and_named(tmp_path: Path, family: list[Path], what: str) -> None:
    """check names the object and every model that rests on it; restore gives no wrong byte; --repair mends it."""
    store = tmp_path / "store"
    add([str(p) for p in family], into=str(store))
    with Library.open(store) as library:
        base, first = library.model("base"), library.model("first")
        part = max(base.tensors.values(), key=lambda p: p.nbytes)
        assert part.object not in first.objects
    victim = next((store / "objects").rglob(part.object))
    blob = bytearray(victim.read_bytes())
    if what == "flip":
        blob[-7] ^= 4
        victim.write_bytes(bytes(blob))
    elif what == "cut":
        victim.write_bytes(bytes(blob[:-1]))
    else:
        victim.unlink()
    said = cli("store", "check", str(store)).failed(4, part.object)
    assert all(name in said.err for name in ("base", "first", "second", "third"))  # as bases of their differences
    if what != "flip":
        cli("store", "check", str(store), "--quick").failed(4, part.object)
    with pytest.raises((ProofFailed, NettError)):
        restore_model(store, "third", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    cli("store", "check", str(store), "--repair").succeeded()
    restore_model(store, "third", tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(family[3])


def test_writing_tensors_keeps_them_apart(tmp_path: Path) -> None:
    """Tied weights stored twice are one object."""
    rows = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    write_tensors(tmp_path / "m" / "model.safetensors", {"embed": rows, "head": rows})
    done = add([str(tmp_path / "m")], into=str(tmp_path / "store"))["models"][0]
    assert done["stored"] < 0.75 * rows.nbytes + 4096 + 2000
