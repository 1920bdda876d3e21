"""Bad input (DESIGN, section 6): found before the work where headers can tell, said in one message with what, where
and what to do, exit code 2, 3 or 4, no traceback; inputs untouched; no output and nothing of it left behind."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest

from support.cli import Said, nett, nett_process
from support.forge import forge
from support.tensors import header_of, to_bits, write_raw, write_tensors


@final
class Bed:
    """A base and two fine-tunes in ``inputs``, a folder ``place`` where outputs would go."""

    def __init__(self, folder: Path) -> None:
        self.inputs, self.place = folder / "inputs", folder / "place"
        self.place.mkdir()
        self.out = self.place / "out"
        rng = np.random.default_rng(0)
        self.tensors = {"a.weight": rng.normal(size=(8, 6)), "b.weight": rng.normal(size=(30,))}
        for name in ("base", "m1", "m2"):
            moved = {n: a + (name != "base") * rng.normal(size=a.shape) * 0.1 for n, a in self.tensors.items()}
            write_tensors(self.file(name), moved, "F32")

    def file(self, model: str) -> Path:
        return self.inputs / model / "model.safetensors"

    @property
    def words(self) -> list[str]:
        """``nett merge ties`` over the three."""
        models = [str(self.inputs / m) for m in ("m1", "m2")]
        return ["merge", "ties", *models, "--base", str(self.inputs / "base"), "--out", str(self.out), "--no-speak"]

    def _state(self) -> dict[str, Any]:
        return {str(f): (f.lstat().st_mtime_ns, f.read_bytes() if f.is_file() else b"") for f in self.inputs.rglob("*")}

    def refused(self, code: int, *parts: str, words: list[str] | None = None) -> Said:
        """The command ends with ``code`` and one message that says ``parts``; nothing has changed anywhere."""
        inputs, place = self._state(), sorted(self.place.rglob("*"))
        said = nett(*(words or self.words)).failed(code, *parts)
        assert self._state() == inputs
        assert sorted(self.place.rglob("*")) == place
        return said


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def test_the_bed_itself_is_good(bed: Bed) -> None:
    """So that what the other tests see refused is refused for its own fault."""
    nett(*bed.words).succeeded()
    assert bed.out.is_dir() and [p.name for p in bed.place.iterdir()] == ["out"]


# -- models that do not fit each other --------------------------------------------------------------------------


def test_mismatched_shapes(bed: Bed) -> None:
    write_tensors(bed.file("m2"), bed.tensors | {"a.weight": np.zeros((8, 7))})
    bed.refused(3, "'a.weight' has shape [8, 7], but [8, 6]", str(bed.inputs / "m2"), "architecture")


def test_same_size_but_another_shape(bed: Bed) -> None:
    write_tensors(bed.file("m2"), bed.tensors | {"a.weight": np.zeros((6, 8))})
    bed.refused(3, "'a.weight' has shape [6, 8], but [8, 6]")


def test_missing_tensor_names_the_nearest(bed: Bed) -> None:
    write_tensors(bed.file("m1"), {"a.weight": bed.tensors["a.weight"], "b.weigth": bed.tensors["b.weight"]})
    bed.refused(3, "has no tensor 'b.weight'", "nearest: 'b.weigth'", str(bed.inputs / "m1"), "nett diff")


def test_tensor_that_only_a_fine_tune_has(bed: Bed) -> None:
    write_tensors(bed.file("m1"), bed.tensors | {"c.extra": np.zeros(3)})
    bed.refused(3, "has no tensor 'c.extra'", str(bed.inputs / "base"))


def test_integers_where_floats_are(bed: Bed) -> None:
    write_tensors(bed.file("m1"), bed.tensors | {"b.weight": np.zeros(30, np.int64)})
    bed.refused(3, "'b.weight' is I64, but F32")


def test_nothing_to_merge(bed: Bed) -> None:
    for name in ("base", "m1", "m2"):
        write_tensors(bed.file(name), {"a": np.arange(4)})
    bed.refused(3, "no floating-point tensor")


# -- files that are not what they say ---------------------------------------------------------------------------


def lying(bed: Bed, header: Any, data: bytes, length: int | None = None) -> None:
    write_raw(bed.file("m2"), header, data, length)


def test_truncated_file(bed: Bed) -> None:
    whole = bed.file("m2").read_bytes()
    for kept, part in (
        (0, "0 bytes"),
        (5, "5 bytes"),
        (8, "header has"),
        (60, "header has"),
        (len(whole) - 1, "lie outside"),
    ):
        bed.file("m2").write_bytes(whole[:kept])
        bed.refused(3, part, "truncated" if kept <= 60 else "'b.weight'", str(bed.file("m2")))


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 100_000_001, 10_000, 3])
def test_lying_header_length(bed: Bed, length: int) -> None:
    blob = bed.file("m2").read_bytes()
    bed.file("m2").write_bytes(struct.pack("<Q", length) + blob[8:])
    bed.refused(3, str(bed.file("m2")), "header")


def entry(start: int, stop: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "size", "parts"),
    [
        ({"a": entry(0, 16), "b": entry(8, 24)}, 24, ["'b' overlaps"]),
        ({"a": entry(0, 16), "b": entry(0, 16)}, 16, ["overlaps"]),
        ({"a": entry(0, 16), "b": entry(20, 24)}, 24, ["'b' leaves a hole"]),
        ({"a": entry(4, 16)}, 16, ["'a' leaves a hole"]),
        ({"a": entry(0, 16)}, 20, ["4 bytes that belong to no tensor"]),
        ({"a": entry(0, 16)}, 12, ["'a'", "lie outside the file"]),
        ({"a": entry(-4, 12)}, 12, ["'a'", "lie outside the file"]),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, 8, ["'a'", "lie outside"]),
        ({"a": entry(0, 16, [5])}, 16, ["'a'", "needs 20 bytes"]),
        ({"a": entry(0, 16, [-2, -2])}, 16, ["'a'", "not a list of sizes"]),
        ({"a": entry(0, 16, [2.0, 2])}, 16, ["'a'", "not a list of sizes"]),
        ({"a": entry(0, 16, [True, 4])}, 16, ["'a'", "not a list of sizes"]),
        ({"a": entry(0, 16, "4")}, 16, ["'a'", "not a list of sizes"]),
        ({"a": entry(0, 16, [1 << 62, 1 << 62])}, 16, ["'a'", "needs"]),
        ({"a": entry(0, 16, dtype="F31")}, 16, ["'a'", "dtype 'F31' is not supported"]),
        ({"a": entry(0, 16, dtype=7)}, 16, ["'a'", "dtype 7 is not supported"]),
        ({"a": entry(0, 16, dtype=["F32"])}, 16, ["'a'", "is not supported"]),
        ({"a": entry(0, 16, dtype={})}, 16, ["'a'", "is not supported"]),
        ({"a": {"dtype": "F32", "shape": [4]}}, 16, ["'a'", "data_offsets"]),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16, 32]}}, 16, ["'a'", "data_offsets"]),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16.0]}}, 16, ["'a'", "data_offsets"]),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": {"0": 16}}}, 16, ["'a'", "data_offsets"]),
        ({"a": [0, 16]}, 16, ["'a'", "not an object"]),
        ({"a": None}, 0, ["'a'", "not an object"]),
        ([1, 2], 0, ["not a JSON object"]),
        ({"__metadata__": {"format": 1}, "a": entry(0, 16)}, 16, ["__metadata__"]),
        ({"__metadata__": ["pt"], "a": entry(0, 16)}, 16, ["__metadata__"]),
        (b"{", 0, ["not valid JSON"]),
        (b'{"a": \xff\xfe}', 0, ["not valid JSON"]),
        (b"[" * 90_000, 0, ["not valid JSON"]),
        (b'{"a": NaN}', 0, ["'a'"]),
        (b"", 0, ["not valid JSON"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict | bytes) else "",
)
def test_lying_header(bed: Bed, header: Any, size: int, parts: list[str]) -> None:
    lying(bed, header, bytes(size))
    bed.refused(3, str(bed.file("m2")), *parts)


def test_duplicate_keys(bed: Bed) -> None:
    one = json.dumps({"a": entry(0, 16)})[1:-1]
    lying(bed, f"{{{one}, {one}}}".encode(), bytes(16))
    bed.refused(3, "the key 'a' stands twice", str(bed.file("m2")))


def test_duplicate_keys_within_an_entry(bed: Bed) -> None:
    lying(bed, b'{"a":{"dtype":"F32","dtype":"I8","shape":[4],"data_offsets":[0,16]}}', bytes(16))
    bed.refused(3, "the key 'dtype' stands twice")


def test_one_tensor_in_two_shards(bed: Bed) -> None:
    folder = bed.inputs / "m2"
    shutil.copy(bed.file("m2"), folder / "model-00001-of-00002.safetensors")
    bed.file("m2").rename(folder / "model-00002-of-00002.safetensors")
    bed.refused(3, "also stands in", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize("place", ["../base/model.safetensors", "/etc/passwd", "..", "a/b.safetensors", "", "x\0y", 7])
def test_path_traversal_in_an_index(bed: Bed, place: Any) -> None:
    index = bed.inputs / "m2" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": place, "b.weight": "model.safetensors"}}))
    bed.refused(3, "'a.weight'", "not a plain file name", str(index))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ["index"]),
        ("[]", ["weight_map"]),
        ('{"weight_map": []}', ["weight_map"]),
        ('{"weight_map": {"a.weight": "gone.safetensors"}}', ["'gone.safetensors'", "not in the folder"]),
        ('{"weight_map": {"z.weight": "model.safetensors"}}', ["'z.weight'", "does not"]),
        ('{"weight_map": {"a.weight": "model.safetensors", "a.weight": "x"}}', ["stands twice"]),
    ],
)
def test_broken_index(bed: Bed, content: str, parts: list[str]) -> None:
    (bed.inputs / "m2" / "model.safetensors.index.json").write_text(content)
    bed.refused(3, *parts)


def test_a_symbolic_link_out_of_the_folder_is_the_users_own(bed: Bed, tmp_path: Path) -> None:
    """Hugging Face's cache is made of such links: they are followed, only names in an index are not trusted."""
    real = tmp_path / "blob"
    bed.file("m2").rename(real)
    bed.file("m2").symlink_to(real)
    nett(*bed.words).succeeded()


def test_config_that_is_no_json(bed: Bed) -> None:
    (bed.inputs / "base" / "config.json").write_text("{vocab")
    bed.refused(3, "config.json", "JSON")


def test_not_a_checkpoint(bed: Bed) -> None:
    (bed.inputs / "empty").mkdir()
    (bed.inputs / "notes.txt").write_text("x")
    for name, parts in (
        ("nowhere", ["no such file or folder"]),
        ("bsae", ["no such file or folder", "Did you mean", "/base?"]),
        ("empty", ["holds no checkpoint"]),
        ("notes.txt", ["'.txt' are not checkpoints"]),
    ):
        words = [str(bed.inputs / name) if w.endswith("/m2") else w for w in bed.words]
        bed.refused(3, name, *parts, words=words)


# -- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("model", ["base", "m2"])
def test_nan_and_infinity_are_named(bed: Bed, value: float, model: str) -> None:
    bad = {n: a.copy() for n, a in bed.tensors.items()}
    bad["b.weight"][17] = value
    write_tensors(bed.file(model), bad)
    bed.refused(3, "'b.weight' holds NaN or infinity", "first at element 17 of 30", str(bed.inputs / model))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F64"])
def test_nan_of_every_type(bed: Bed, dtype: str) -> None:
    bad = {n: a.copy() for n, a in bed.tensors.items()}
    bad["a.weight"][2, 3] = np.nan
    for name in ("base", "m1", "m2"):
        write_tensors(bed.file(name), bad if name == "m1" else bed.tensors, dtype)
    if dtype == "BF16":  # what NumPy's rounding makes of NaN must still be one
        raw = bytearray(bed.file("m1").read_bytes())
        start = len(raw) - sum(a.size for a in bed.tensors.values()) * 2
        raw[start + 2 * 15 : start + 2 * 15 + 2] = b"\xc0\x7f"
        bed.file("m1").write_bytes(raw)
    bed.refused(3, "'a.weight' holds NaN or infinity", "element 15 of 48")


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn", "float8_e5m2"])
def test_overflow_of_the_result_is_a_failed_proof(bed: Bed, dtype: str) -> None:
    """100 000 is too much for these types: exit 4, with the tensor and a way out."""
    huge = {n: a + 1e5 for n, a in bed.tensors.items()}
    write_tensors(bed.file("m1"), huge)
    write_tensors(bed.file("m2"), huge)
    words = [*bed.words, "--dtype", dtype, "--density", "1"]
    bed.refused(4, "'a.weight' of the result would hold", "--dtype float32", words=words)


def test_overflow_in_a_file_of_float16(bed: Bed) -> None:
    for name in ("base", "m1", "m2"):
        values = bed.tensors if name == "base" else {n: a + 6e4 for n, a in bed.tensors.items()}
        write_tensors(bed.file(name), values, "F16")
    words = [w if w != "ties" else "task_arithmetic" for w in bed.words]
    bed.refused(4, "NaN or infinite values in F16", words=words)


# -- the target -------------------------------------------------------------------------------------------------


def test_output_exists(bed: Bed) -> None:
    bed.out.mkdir()
    nett(*bed.words).succeeded()  # an empty folder is as good as none
    before = {f: f.read_bytes() for f in bed.out.iterdir()}
    bed.refused(3, "exists and is not empty", str(bed.out), "--overwrite")
    assert {f: f.read_bytes() for f in bed.out.iterdir()} == before
    nett(*bed.words, "--overwrite").succeeded()


def test_output_is_a_file_or_a_link(bed: Bed, tmp_path: Path) -> None:
    bed.out.write_text("mine")
    bed.refused(3, "exists and is not a folder")
    bed.refused(3, "exists and is not a folder", words=[*bed.words, "--overwrite"])
    bed.out.unlink()
    bed.out.symlink_to(tmp_path / "elsewhere")
    bed.refused(3, "exists and is not a folder")
    words = [str(bed.inputs / "notes.txt" / "out") if w == str(bed.out) else w for w in bed.words]
    (bed.inputs / "notes.txt").write_text("x")
    bed.refused(3, "not a folder", words=words)


@pytest.mark.parametrize("target", ["m1", "base"])
def test_output_is_one_of_the_inputs(bed: Bed, target: str) -> None:
    """Not even with --overwrite: the input would be gone before it was hashed, or with it."""
    words = [str(bed.inputs / target) if w == str(bed.out) else w for w in bed.words]
    bed.refused(3, str(bed.inputs / target), words=words)
    bed.refused(3, str(bed.inputs / target), "input", words=[*words, "--overwrite"])
    inside = [str(bed.inputs / target / "out") if w == str(bed.out) else w for w in bed.words]
    above = [str(bed.inputs) if w == str(bed.out) else w for w in bed.words]
    bed.refused(3, str(bed.inputs), "input", words=[*above, "--overwrite"])
    nett(*inside).succeeded()  # beside the weights of an input is odd, but harms nothing


def test_disk_too_small_by_plan(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 900, 100))
    bed.refused(3, "bytes of disk, but only 100 are free", str(bed.out))


def test_disk_full_while_preallocating(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    bed.refused(3, "bytes, which the disk does not have", "model.safetensors")


def test_disk_full_while_writing(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not preallocated space, say of a side file: said; what was written is kept to go on from, once there is room."""
    real = os.pwrite

    def full(fd: int, data: Any, at: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    nett(*bed.words).failed(1, "No space left on device", "again to resume")
    assert not bed.out.exists()
    monkeypatch.setattr(os, "pwrite", real)
    nett(*bed.words).succeeded()
    assert [p.name for p in bed.place.iterdir()] == ["out"]


def test_limit_on_file_size(bed: Bed) -> None:
    """The kernel's own refusal, in a child with RLIMIT_FSIZE."""
    said = forge().run("support.work:limited", words=bed.words, limit=300)
    Said(*said).failed(3, "which the disk does not have")
    assert not list(bed.place.iterdir())


def test_a_tiny_file_system(bed: Bed, tmp_path: Path) -> None:
    """A real one, 64 KB, too small for the side files after the weights fit, or for the weights."""
    if os.getuid() != 0:
        pytest.skip("mounting needs root")
    mount = tmp_path / "tiny"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")
    try:
        words = [str(mount / "out") if w == str(bed.out) else w for w in bed.words]
        big = {n: np.resize(a, (4096,)) for n, a in bed.tensors.items()}
        small = {n: np.resize(a, (2048,)) for n, a in bed.tensors.items()}
        for name in ("base", "m1", "m2"):
            write_tensors(
                bed.file(name), {n: a * 4 for n, a in big.items()} | {"c": np.resize(big["a.weight"], (9000,))}
            )
        nett(*words).failed(3, "bytes of disk, but only", str(mount / "out"))
        assert not list(mount.iterdir())
        for name in ("base", "m1", "m2"):
            write_tensors(bed.file(name), small)
            (bed.inputs / name / "config.json").write_text("{}")
            (bed.inputs / name / "tokenizer.json").write_text(json.dumps({"x": "y" * 60_000}))
        assert nett(*words).code in (1, 3)
        assert not (mount / "out").exists()
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def as_nobody(words: list[str]) -> Said:
    """The command line in a child process of an unprivileged user: root is not stopped by modes."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    return Said(*forge().run("support.work:unprivileged", words=words))


def open_to_all(folder: Path) -> None:
    """Let another user into a folder that pytest made for its own."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
        if parent.name.startswith("pytest-of"):
            break
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))


def test_target_that_cannot_be_written(bed: Bed) -> None:
    open_to_all(bed.inputs.parent)
    as_nobody(bed.words).failed(3, "cannot be written by this user", str(bed.place), "permissions")
    assert not list(bed.place.iterdir())
    bed.place.chmod(0o777)
    as_nobody(bed.words).succeeded()


def test_output_folder_that_cannot_be_replaced(bed: Bed) -> None:
    """The parent is writable, but what stands there is another user's in a folder with the sticky bit."""
    open_to_all(bed.inputs.parent)
    bed.out.mkdir()
    (bed.out / "mine.txt").write_text("mine")
    bed.place.chmod(0o1777)
    said = as_nobody([*bed.words, "--overwrite"])
    assert said.code in (1, 3) and "Traceback" not in said.err and str(bed.out) in said.err
    assert (bed.out / "mine.txt").read_text() == "mine"


def test_input_that_cannot_be_read(bed: Bed) -> None:
    open_to_all(bed.inputs.parent)
    bed.place.chmod(0o777)
    bed.file("m2").chmod(0o600)
    as_nobody(bed.words).failed(3, "cannot be read", str(bed.file("m2")))
    bed.file("m2").chmod(0o644)
    (bed.inputs / "m2").chmod(0o600)
    as_nobody(bed.words).failed(3, str(bed.inputs / "m2"))
    assert not list(bed.place.iterdir())


def test_read_only_file_system(bed: Bed, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("mounting needs root")
    mount = tmp_path / "fixed"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(mount)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")
    try:
        words = [str(mount / "out") if w == str(bed.out) else w for w in bed.words]
        nett(*words).failed(3, "cannot be written", str(mount))
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


# -- words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["merge", "tise", "m"],
            ["no method of the room merge is called 'tise'", "Did you mean 'ties'", "nett list merge"],
        ),
        (["merge", "ties", "m", "--out", "o"], ["--base"]),
        (["merge", "ties", "--base", "b", "--out", "o"], ["at least one model"]),
        (["merge", "ties", "m", "--base", "b"], ["--out"]),
        (
            ["merge", "ties", "m", "--base", "b", "--out", "o", "--densty", "0.2"],
            ["'densty'", "'density'", "0 <= density <= 1"],
        ),
        (["merge", "ties", "m", "--base", "b", "--out", "o", "--density", "2"], ["density = '2'", "0 <= density <= 1"]),
        (["merge", "ties", "m", "--base", "b", "--out", "o", "--density", "x"], ["density = 'x' is not a number"]),
        (
            ["merge", "ties", "m", "--base", "b", "--out", "o", "--scope", "modle"],
            ["'modle'", "tensor, model", "Did you mean 'model'"],
        ),
        (["merge", "ties", "m", "--base", "b", "--out", "o", "--threads", "-1"], ["threads", "0 <= threads <= 64"]),
        (["merge", "ties", "m", "--base", "b", "--out", "o", "--dtype", "bf17"], ["'bf17'", "Did you mean"]),
        (["merge", "ties", "m", "--base", "b", "--out", "o", "--shard-size", "5 apples"], ["5 apples", "500MB"]),
        (["merge", "consensus", "m", "--base", "b", "--out", "o", "--mask-lambda", "0"], ["0 < mask_lambda"]),
        (["merge", "consensus", "m", "--base", "b", "--out", "o", "--scale", "auto"], ["--eval"]),
        (["mrege", "ties"], ["mrege"]),
        (["list", "kitchen"], ["kitchen"]),
        (["show", "tise"], ["'tise'", "Did you mean 'ties'"]),
        (["scna"], ["scna"]),
        (["merge", "ties", "m", "--no-such"], ["'no-such'"]),
        (["verify"], ["OUT"]),
    ],
    ids=lambda value: " ".join(value)[:60] if value[:1] in (["merge"], ["list"], ["show"]) else "",
)
def test_unknown_words(bed: Bed, words: list[str], parts: list[str]) -> None:
    names = {"m": str(bed.inputs / "m1"), "b": str(bed.inputs / "base"), "o": str(bed.out)}
    bed.refused(2, *parts, words=[names.get(w, w) for w in words])


def test_unknown_parameter_in_a_call_from_python() -> None:
    from nett.core.errors import UsageError
    from nett.merge import ties

    with pytest.raises(UsageError, match="Did you mean 'density'"):
        ties(np.zeros(3), [np.zeros(3)], densty=0.1)


# -- pickles ----------------------------------------------------------------------------------------------------


class _Harm:
    """What runs when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


def test_pickle_with_code_is_refused_and_not_run(bed: Bed) -> None:
    torch = pytest.importorskip("torch")
    harmed = bed.inputs.parent / "harmed"
    shutil.rmtree(bed.inputs / "m2")
    (bed.inputs / "m2").mkdir()
    file = bed.inputs / "m2" / "pytorch_model.bin"
    torch.save({"a.weight": torch.zeros(8, 6), "b.weight": _Harm(str(harmed))}, file)
    bed.refused(3, str(file))
    file.write_bytes(pickle.dumps(_Harm(str(harmed))))
    bed.refused(3, str(file))
    assert not harmed.exists()


def test_pickle_without_torch(bed: Bed) -> None:
    """Says what is missing and how to install it; a process in which torch cannot be imported."""
    shutil.rmtree(bed.inputs / "m2")
    (bed.inputs / "m2").mkdir()
    (bed.inputs / "m2" / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    block = bed.inputs.parent / "block"
    (block / "torch").mkdir(parents=True)
    (block / "torch" / "__init__.py").write_text("raise ModuleNotFoundError('no torch here', name='torch')")
    nett_process(*bed.words, env={"PYTHONPATH": str(block)}).failed(3, "torch", "pip install")


# -- a process of its own ---------------------------------------------------------------------------------------


def test_debug_shows_the_traceback_and_nothing_else_does(bed: Bed) -> None:
    write_tensors(bed.file("m2"), bed.tensors | {"a.weight": np.zeros((8, 7))})
    plain = nett_process(*bed.words)
    plain.failed(3, "shape")
    assert plain.out == ""
    debug = nett_process("--debug", *bed.words)
    assert "Traceback" in debug.err and "Refused" in debug.err and debug.code != 0


def test_an_input_that_shrinks_while_it_is_read(bed: Bed) -> None:
    """A short read is an error that is told, not a dead process."""
    from nett.core.checkpoint import open_checkpoint
    from nett.core.errors import NettError

    opened = open_checkpoint(bed.inputs / "m1")
    assert header_of(bed.file("m1"))
    os.truncate(bed.file("m1"), bed.file("m1").stat().st_size - 8)
    with pytest.raises(NettError, match="8 bytes short: it changed while being read"):
        opened.read("b.weight")
    opened.close()


def test_interrupt_from_the_keyboard(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", interrupted)
        said = nett(*bed.words)
    assert said.code == 130 and "run the same command again to resume" in said.err
    nett(*bed.words).succeeded()


def test_bits_helper_agrees_with_the_reader(bed: Bed) -> None:
    """The writer of these tests and nett's reader mean the same by bfloat16."""
    from nett.core.dtypes import DTYPES, decode

    values = np.random.default_rng(0).normal(size=500)
    raw = np.frombuffer(to_bits(values, "BF16"), "<u2")
    assert np.max(np.abs(decode(raw, DTYPES["BF16"]) - values) / np.abs(values)) <= 2.0**-8
    assert sys.byteorder == "little"
