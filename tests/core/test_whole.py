"""All tensors of a checkpoint at once: what reading them one by one gives, in pieces or whole, on any number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nett.core.checkpoint import open_checkpoint, whole
from nett.core.checkpoint.arrays import ArrayCheckpoint
from nett.core.checkpoint.whole import read_whole
from nett.core.tiny import write_llama


@pytest.mark.parametrize("run", [100, 1 << 21])
@pytest.mark.parametrize("threads", [1, 3])
def test_as_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: int, threads: int) -> None:
    monkeypatch.setattr(whole, "RUN", run)
    with open_checkpoint(write_llama(tmp_path / "m", dtype="BF16")) as checkpoint:
        for decoded, read in ((True, checkpoint.values), (False, checkpoint.read)):
            found = read_whole(checkpoint, decoded=decoded, threads=threads)
            assert list(found) == list(checkpoint.tensors)
            for name, info in checkpoint.tensors.items():
                expected = read(name)
                assert found[name].shape == info.shape and found[name].dtype == expected.dtype
                assert found[name].tobytes() == expected.tobytes()


def test_empty_and_scalar_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"none": np.empty((0, 3), np.float32), "one": np.array(2.5, np.float64), "many": np.arange(7, dtype="i4")}
    monkeypatch.setattr(whole, "RUN", 3)
    found = read_whole(ArrayCheckpoint(arrays))
    for name, array in arrays.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        assert (found[name] == array).all()


def test_small_arrays_share_a_slab_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "SLAB", 4096)
    monkeypatch.setattr(whole, "LARGE", 3000)
    arrays = {f"t{i}": np.full(size, i, np.uint8) for i, size in enumerate([7, 2999, 3000, 0, 1500, 900, 64, 65, 5000])}
    found = read_whole(ArrayCheckpoint(arrays))
    for i, array in enumerate(found.values()):
        assert (array == i).all() and array.flags.writeable
        array[:] = 200 + i
    for i, array in enumerate(found.values()):
        assert (array == 200 + i).all()  # writing to one changed no other
    slabs = {id(root) for a in found.values() if (root := _root(a)).size not in (3000, 5000)}
    assert 1 <= len(slabs) <= 4
    assert all(_root(a).nbytes <= 4096 + 64 or a.size == 5000 for a in found.values())


def _root(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
