"""Duplicates are found byte for byte, within and across checkpoints and containers, and none is invented."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from nett.core import sweep
from nett.scan import duplicate_tensors as module
from nett.scan.duplicate_tensors import duplicate_tensors
from support.scanning import edges, in_every_container, model, tensors_of, write
from support.tensors import write_tensors


def test_planted_within_a_checkpoint(tmp_path: Path) -> None:
    tensors = model()
    tensors["model.layers.1.mlp.weight"] = tensors["model.layers.0.mlp.weight"]
    tensors["copy"] = tensors["model.layers.0.mlp.weight"]
    path = write(tmp_path / "m", tensors)
    said = duplicate_tensors([path])
    found = tensors_of(said)
    assert found.keys() == {"model.layers.0.mlp.weight", "model.layers.1.mlp.weight"}  # "copy" comes first by name
    kept = {s for e in found.values() for s in e.sources}
    assert len(kept) == 1 and not kept & {e.target for e in found.values()}  # one is kept, the others come from it
    for edge in found.values():
        assert (edge.kind, edge.bytes_freed, edge.error, edge.guarantee, edge.seconds) == (
            "duplicate_tensor", 24 * 16 * 4, 0.0, "exact", 0.0,
        )  # fmt: skip
    assert said.figures == {"duplicates": 2, "tied_twice": 0, "bytes": 2 * 24 * 16 * 4}


def test_planted_across_checkpoints(tmp_path: Path) -> None:
    one, two = model(1), model(2)
    two["model.norm.weight"] = one["model.norm.weight"]
    paths = [write(tmp_path / "one", one), write(tmp_path / "two", two)]
    (edge,) = edges(duplicate_tensors(paths))
    assert edge.target == f"{paths[1]}::model.norm.weight" and edge.sources == (f"{paths[0]}::model.norm.weight",)
    assert edge.bytes_freed == 64


def test_every_tensor_of_every_container_is_the_same(tmp_path: Path) -> None:
    tensors = model()
    paths = in_every_container(tmp_path, tensors)
    found = edges(duplicate_tensors(list(paths.values())))
    first = paths["file"]
    assert {e.target for e in found} == {f"{p}::{n}" for c, p in paths.items() if c != "file" for n in tensors}
    assert all(e.sources[0].partition("::")[0] == first for e in found)
    assert sum(e.bytes_freed for e in found) == 4 * sum(a.nbytes for a in tensors.values())


def test_nothing_without_redundancy(tmp_path: Path) -> None:
    paths = [write(tmp_path / str(i), model(i)) for i in range(3)]
    said = duplicate_tensors(paths)
    assert said.found == () and said.figures == {"duplicates": 0, "tied_twice": 0, "bytes": 0}


@pytest.mark.parametrize("place", [0, 1, -1])
def test_one_bit_makes_a_difference(tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where tensors are looked at in many units, in the first and in the last of them."""
    monkeypatch.setattr(sweep, "UNIT", 50)
    tensors = model()
    other = tensors["lm_head.weight"].copy()
    other.view(np.uint32).reshape(-1)[place] ^= 1
    tensors["model.embed_tokens.weight"] = other
    assert duplicate_tensors([write(tmp_path / "m", tensors)]).found == ()


def test_a_hash_alone_convinces_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If all hashes were equal, tensors would still be compared byte by byte."""
    monkeypatch.setattr(module.Digest, "settle", lambda self, seen: b"the same for all")
    tensors = model()
    tensors["model.norm.weight"] = tensors["model.layers.1.norm.weight"]
    found = tensors_of(duplicate_tensors([write(tmp_path / "m", tensors)]))
    # the candidates of the group are compared with its first tensor, which is neither of the two
    assert found.keys() <= {"model.norm.weight"}


def test_equal_numbers_of_another_type_or_shape_are_no_duplicates(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.float32)
    tensors = {"a": values, "b": values, "c": values.reshape(8, 8), "d": values.astype(np.int32)}
    path = write(tmp_path / "m", tensors, {"a": "F32", "b": "BF16", "c": "F32", "d": "I32"})
    assert duplicate_tensors([path]).found == ()


def test_zero_and_minus_zero_differ_and_equal_nans_do_not(tmp_path: Path) -> None:
    zero = np.zeros(9, np.float32)
    odd = np.full(9, np.nan, np.float32)
    path = write(tmp_path / "m", {"a": zero, "b": -zero, "c": odd, "d": odd})
    assert tensors_of(duplicate_tensors([path])).keys() == {"d"}


def test_tied_weights_that_are_stored_twice(tmp_path: Path) -> None:
    tensors = model()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    said = duplicate_tensors([write(tmp_path / "m", tensors)])
    assert said.figures["tied_twice"] == 1 and said.figures["bytes"] == 48 * 16 * 4


def test_other_pairs_are_not_called_tied(tmp_path: Path) -> None:
    """``attn_output.weight`` ends as a head does, and is none."""
    values = model()["lm_head.weight"]
    path = write(tmp_path / "m", {"blk.0.attn_output.weight": values, "blk.1.attn_output.weight": values, "x": values})
    assert duplicate_tensors([path]).figures["tied_twice"] == 0


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_one_file_under_two_names_is_no_duplicate(tmp_path: Path, link: object) -> None:
    """Nothing would be freed."""
    first = Path(write(tmp_path / "one", model()))
    (tmp_path / "two").mkdir()
    link(first / "model.safetensors", tmp_path / "two" / "model.safetensors")  # type: ignore[operator]
    assert duplicate_tensors([str(first), str(tmp_path / "two")]).found == ()


def test_empty_tensors_and_scalars(tmp_path: Path) -> None:
    tensors = {"a": np.zeros((0, 4), np.float32), "b": np.zeros((0, 4), np.float32), "c": np.float32(3).reshape(()),
               "d": np.float32(3).reshape(()), "e": np.array([], np.int64)}  # fmt: skip
    path = str(write_tensors(tmp_path / "m.safetensors", tensors))
    found = tensors_of(duplicate_tensors([path]))
    assert found.keys() == {"d"} and found["d"].bytes_freed == 4


def test_arrays_without_files() -> None:
    values = np.arange(12.0)
    assert tensors_of(duplicate_tensors([{"a": values, "b": values.copy(), "c": values + 1}])).keys() == {"b"}
