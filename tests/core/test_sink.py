"""Many files in one pass: order, shards, marks, and going on from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nett.core.checkpoint.writer import FileSpec, TensorSpec, shard_plan
from nett.core.dtypes import DTYPES
from nett.core.errors import NettError
from nett.core.sink import Sink, stem_of
from support.tensors import read_tensors


def plan() -> list[FileSpec]:
    """A stem of three shards and one of a single file, with an empty tensor in each."""
    sizes = {"a": 5, "b": 9, "c": 0, "d": 7, "e": 3}
    specs = [TensorSpec(n, DTYPES["I32"], (s,)) for n, s in sizes.items()]
    return [*shard_plan(specs, 40, "model"), *shard_plan(specs, 1000, "masks/m1")]


def pieces() -> list[tuple[str, Any]]:
    """What a run would write: each tensor in chunks of three, both stems taking turns."""
    found = []
    for number, size in enumerate((5, 9, 0, 7, 3)):
        for start in range(0, max(size, 1), 3):
            data = np.arange(start, min(size, start + 3), dtype=np.int32) + 100 * number
            found += [("model", data), ("masks/m1", data)]
    return found


def finished(folder: Path, sink: Sink) -> dict[str, bytes]:
    records = sink.finish()
    for record in records:
        blob = (folder / record["path"]).read_bytes()
        assert (record["bytes"], record["sha256"]) == (len(blob), hashlib.sha256(blob).hexdigest())
    for name, content in sink.indexes().items():
        (folder / name).write_bytes(content)
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def whole(folder: Path) -> dict[str, bytes]:
    sink = Sink(folder, plan())
    for stem, data in pieces():
        sink.write(stem, data)
    return finished(folder, sink)


def test_files_are_what_was_planned(tmp_path: Path) -> None:
    found = whole(tmp_path)
    assert {"model-00001-of-00003.safetensors", "masks/m1.safetensors", "model.safetensors.index.json"} <= found.keys()
    assert {n: len(b) for n, b in found.items() if n.endswith("safetensors")} == {f.name: f.nbytes for f in plan()}
    one, three = read_tensors(tmp_path / "masks"), read_tensors(tmp_path)
    assert one.keys() == three.keys() and all(np.array_equal(one[n], three[n]) for n in one)
    assert one["d"].tolist() == list(range(300, 307)) and one["c"].size == 0


@given(st.integers(0, 17), st.integers(0, 17))
def test_taken_up_from_any_mark(tmp_path_factory: pytest.TempPathFactory, mark: int, lost: int) -> None:
    """Written to some point, marked, written on without a mark, taken up: the same bytes."""
    expected = whole(tmp_path_factory.mktemp("whole"))
    folder = tmp_path_factory.mktemp("cut")
    todo = pieces()
    mark = min(mark, len(todo))
    sink = Sink(folder, plan())
    for stem, data in todo[:mark]:
        sink.write(stem, data)
    marks = json.loads(json.dumps(sink.sync()))
    for stem, data in todo[mark : mark + lost]:
        sink.write(stem, data + 1)  # garbage that the mark does not know of
    sink.close()
    again = Sink(folder, plan(), marks)
    for stem, data in todo[mark:]:
        again.write(stem, data)
    assert finished(folder, again) == expected


def test_damage_is_noticed(tmp_path: Path) -> None:
    """A finished shard or a half one that is not what the marks say: refused, with what to do."""
    sink = Sink(tmp_path, plan())
    for stem, data in pieces()[:8]:
        sink.write(stem, data)
    marks = sink.sync()
    sink.close()
    for name, (position, _) in marks.items():
        if not position:
            continue
        blob = bytearray((tmp_path / name).read_bytes())
        blob[position - 1] ^= 1
        (tmp_path / name).write_bytes(blob)
        with pytest.raises(NettError, match="does not hold what its journal says") as caught:
            Sink(tmp_path, plan(), marks)
        assert name in str(caught.value) and f"Delete {tmp_path}" in str(caught.value)
        blob[position - 1] ^= 1
        (tmp_path / name).write_bytes(blob)
    Sink(tmp_path, plan(), marks).close()


def test_incomplete_is_not_finished(tmp_path: Path) -> None:
    sink = Sink(tmp_path, plan())
    for stem, data in pieces()[:-1]:
        sink.write(stem, data)
    with pytest.raises(NettError, match="is incomplete"):
        sink.finish()
    sink.close()


@pytest.mark.parametrize(
    ("name", "stem"),
    [("model.safetensors", "model"), ("model-00001-of-00003.safetensors", "model"), ("masks/a-b-00010-of-00012.safetensors", "masks/a-b"),
     ("masks/part-of-12345.safetensors", "masks/part-of-12345"), ("x-1-of-3.safetensors", "x-1-of-3")],
)  # fmt: skip
def test_stems(name: str, stem: str) -> None:
    assert stem_of(name) == stem
