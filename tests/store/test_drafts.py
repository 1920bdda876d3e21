"""Any file becomes a draft that covers each of its bytes once and comes back: tensors of every type and shape that are
large enough for objects of their own, headers that lie, names that share bytes, files that change meanwhile."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nett.core.errors import Refused
from nett.core.segments import SMALL
from nett.store import draft as drafts
from nett.store.add import add
from nett.store.draft import read_file
from nett.store.library import Library
from nett.store.restoring import restore_model

WIDTHS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I8": 1, "U8": 1,
          "BOOL": 1}  # fmt: skip
SHAPES = [(), (0,), (3, 0, 5), (1 << 20, 0), (1,), (1500,), (40_000, 1), (1, 2049), (64, 65), (7, 11, 13)]


def content(kind: str, nbytes: int, seed: int) -> bytes:
    """Bytes as files hold them: any bits, weights, packed 4-bit codes, zeros."""
    rng = np.random.default_rng(seed)
    if kind == "zeros":
        return bytes(nbytes)
    if kind == "weights":
        return rng.standard_normal(nbytes // 4 + 1, dtype=np.float32).tobytes()[:nbytes]
    if kind == "int4":
        low, high = np.clip(rng.normal(8, 2, (2, nbytes)).round(), 0, 15).astype(np.uint8)
        return bytes((low | high << 4).tobytes())
    return rng.integers(0, 256, nbytes, np.uint8).tobytes()


def safetensors(entries: list[tuple[str, str, tuple[int, ...], bytes]], padding: int = 0) -> bytes:
    """A file, its header written by hand, so that names may be repeated."""
    rows, at = [], 0
    for name, dtype, shape, data in entries:
        entry = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        rows.append(f"{json.dumps(name)}:{json.dumps(entry)}")
        at += len(data)
    header = ("{" + ",".join(rows) + "}").encode() + b" " * padding
    return len(header).to_bytes(8, "little") + header + b"".join(e[3] for e in entries)


def comes_back(folder: Path, blob: bytes, name: str = "model.safetensors") -> set[str]:
    """Add, restore, compare; the names of the tensors that became objects of their own."""
    (folder / "in").mkdir(parents=True)
    (folder / "in" / name).write_bytes(blob)
    add([str(folder / "in")], into=str(folder / "store"), name="m")
    restore_model(folder / "store", "m", folder / "out")
    assert (folder / "out" / name).read_bytes() == blob
    with Library.open(folder / "store") as library:
        model = library.model("m")
        (file,) = model.files
        assert sum(p.nbytes for p in file.parts) == len(blob)
        return set(model.tensors)


TENSORS = st.dictionaries(
    st.text("wé/.", min_size=1, max_size=5),
    st.tuples(st.sampled_from(sorted(WIDTHS)), st.sampled_from(SHAPES), st.sampled_from(["any", "weights", "int4", "zeros"])),
    max_size=5,
)  # fmt: skip


@settings(max_examples=15)
@given(TENSORS, st.integers(0, 9), st.integers(0, 8))
def test_types_and_shapes(tmp_path: Path, tensors: dict[str, Any], seed: int, padding: int) -> None:
    """0-d, empty, a huge first dimension, fp8, packed 4 bits: large tensors are objects, and the file comes back."""
    entries = []
    for i, (name, (dtype, shape, kind)) in enumerate(tensors.items()):
        nbytes = int(np.prod(shape)) * WIDTHS[dtype]
        entries.append((name, dtype, shape, content(kind, nbytes, 10 * seed + i)))
    found = comes_back(Path(tempfile.mkdtemp(dir=tmp_path)), safetensors(entries, padding))
    assert found == {name for name, _, _, data in entries if len(data) >= SMALL}


@settings(max_examples=15)
@given(TENSORS, st.integers(0, 9))
def test_a_fine_tune_of_any_type_comes_back(tmp_path: Path, tensors: dict[str, Any], seed: int) -> None:
    """The same names, a few bits turned: as a difference or not, every bit comes back."""
    folder, rng, both = Path(tempfile.mkdtemp(dir=tmp_path)), np.random.default_rng(seed), []
    sizes = {n: int(np.prod(shape)) * WIDTHS[dtype] for n, (dtype, shape, _) in tensors.items()}
    base = {n: content(kind, sizes[n], seed + i) for i, (n, (_, _, kind)) in enumerate(tensors.items())}
    for tuned in (False, True):
        entries = []
        for name, (dtype, shape, _) in tensors.items():
            data = np.frombuffer(base[name], np.uint8).copy()
            if tuned and data.size:
                data[rng.integers(data.size, size=data.size // 50 + 1)] ^= 1
            entries.append((name, dtype, shape, data.tobytes()))
        blob = safetensors(entries)
        both.append(blob)
        (folder / f"m{tuned:d}").mkdir()
        (folder / f"m{tuned:d}" / "model.safetensors").write_bytes(blob)
    add([str(folder / "m0"), str(folder / "m1")], into=str(folder / "store"))
    for name, blob in zip(("m0", "m1"), both, strict=True):
        restore_model(folder / "store", name, folder / "out" / name)
        assert (folder / "out" / name / "model.safetensors").read_bytes() == blob


DATA = content("weights", 2 * SMALL, 0)
ODD = {
    "a name twice": safetensors([("w", "F32", (2048,), DATA), ("w", "F32", (2048,), DATA)]),
    "a size that is wrong": safetensors([("w", "F32", (2047,), DATA)]),
    "a size beyond any memory": safetensors([("w", "F32", (1 << 62, 8), DATA)]),
    "an unknown type": safetensors([("w", "F4_E2M1", (4 * SMALL,), DATA)]),
    "a negative size": safetensors([("w", "F32", (-2048,), DATA)]),
    "a file that is cut": safetensors([("w", "F32", (2048,), DATA)])[:-1],
    "a byte too many": safetensors([("w", "F32", (2048,), DATA)]) + b"\0",
    "a header length that lies": (1 << 60).to_bytes(8, "little") + DATA,
    "names that share bytes": (
        lambda h: len(h).to_bytes(8, "little") + h + DATA
    )(json.dumps({n: {"dtype": "F32", "shape": [2048], "data_offsets": [0, 2 * SMALL]} for n in "ab"}).encode()),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_headers_that_do_not_hold(tmp_path: Path, what: str) -> None:
    """No tensor of such a file is believed; the file is kept as the bytes that it is."""
    assert comes_back(tmp_path, ODD[what]) == set()


def test_tied_tensors_of_a_torch_file_are_one_object(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weight = torch.arange(4096, dtype=torch.float32)
    torch.save({"embed": weight, "head": weight, "half": weight[:2048]}, tmp_path / "x.pt")
    comes_back(tmp_path / "m", (tmp_path / "x.pt").read_bytes(), "model.bin")
    with Library.open(tmp_path / "m" / "store") as library:
        held = [p for p in library.model("m").files[0].parts if p.name is not None]
    assert [p.nbytes for p in held] == [4096 * 4]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\1")


def touch(path: Path) -> None:
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("change", [cut, grow, touch])
def test_a_file_that_changes_while_it_is_hashed(
    tmp_path: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused with its name, however it changes between the first look at it and the last."""
    file = tmp_path / "m" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(safetensors([("w", "F32", (2048,), DATA)]))
    real = drafts.segments_of

    def meddling(path: Path, size: int) -> Any:
        found = real(path, size)
        change(path)
        return found

    monkeypatch.setattr(drafts, "segments_of", meddling)
    with pytest.raises(Refused, match="while it was being read") as refused:
        add([str(tmp_path / "m")], into=str(tmp_path / "store"))
    assert str(file) in str(refused.value) and Library.open(tmp_path / "store").names() == []
    assert not list((tmp_path / "store" / "objects").rglob("*"))


@pytest.mark.parametrize("size", ["shorter", "the same"])
def test_a_file_that_is_replaced_between_hashing_and_coding(
    tmp_path: Path, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m" / "model.safetensors"
    file.parent.mkdir()
    blob = safetensors([("w", "F32", (2048,), DATA)])
    file.write_bytes(blob)

    def meddling(path: Path, name: str) -> Any:
        found = read_file(path, name)
        path.write_bytes(blob[:-SMALL] if size == "shorter" else blob[:-1] + b"\7")
        return found

    monkeypatch.setattr(drafts, "read_file", meddling)
    with pytest.raises(Refused, match="while it was being read"):
        add([str(tmp_path / "m")], into=str(tmp_path / "store"))
    assert Library.open(tmp_path / "store").names() == []
