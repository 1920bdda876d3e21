"""nett's own reading and writing of safetensors, against the format's description and the library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nett.core.checkpoint import open_checkpoint
from nett.core.checkpoint.safetensors import read_header
from nett.core.checkpoint.writer import FileSpec, OutputFile, TensorSpec, byte_size, index_json, shard_plan
from nett.core.dtypes import DTYPES
from nett.core.errors import NettError, Refused, UsageError
from support.tensors import header_of, read_tensors, write_raw, write_tensors

FLOAT, INT, BITS = DTYPES["F32"], DTYPES["I64"], DTYPES["BF16"]


def test_headers_alone_tell_everything(tmp_path: Path) -> None:
    """Names, shapes, types and bytes are there before a single element was read."""
    tensors = {"a": np.zeros((3, 4)), "b": np.zeros(()), "c": np.zeros((0, 7)), "d": np.arange(5)}
    file = write_tensors(
        tmp_path / "model.safetensors", tensors, {"a": "BF16", "b": "F32", "c": "F16", "d": "I64"}, format="pt"
    )
    with file.open("r+b") as opened:  # the data is gone, only holes are left
        opened.truncate(file.stat().st_size)
    with open_checkpoint(file) as checkpoint:
        assert {n: (t.dtype.name, t.shape, t.size, t.nbytes) for n, t in checkpoint.tensors.items()} == {
            "a": ("BF16", (3, 4), 12, 24), "b": ("F32", (), 1, 4), "c": ("F16", (0, 7), 0, 0), "d": ("I64", (5,), 5, 40),
        }  # fmt: skip
        assert checkpoint.nbytes == 68 and checkpoint.parameters == 18 and checkpoint.name == "model"
        assert all(t.file == file for t in checkpoint.tensors.values())


def test_any_range_reads_as_the_whole(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(7, 11))
    file = write_tensors(tmp_path / "m.safetensors", {"x": np.ones(3), "a": values}, "BF16")
    expected = read_tensors(file)["a"].ravel()
    with open_checkpoint(file) as checkpoint:
        np.testing.assert_array_equal(checkpoint.values("a"), expected)
        for start, stop in ((0, 1), (5, 40), (76, 77), (77, 77), (0, 77)):
            np.testing.assert_array_equal(checkpoint.values("a", start, stop), expected[start:stop])
        part = checkpoint.read("a", 3, 9)
        part[:] = 0  # memory of our own
        np.testing.assert_array_equal(checkpoint.values("a"), expected)


def test_many_threads_read_one_file(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    values = np.arange(100_000, dtype=np.float64)
    file = write_tensors(tmp_path / "m.safetensors", {"a": values}, "F64")
    with open_checkpoint(file) as checkpoint, ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: checkpoint.read("a", i * 100, i * 100 + 100), range(1000)))
    np.testing.assert_array_equal(np.concatenate(parts), values)


def test_folders(tmp_path: Path) -> None:
    """model.safetensors alone, shards with an index, shards without one; an adapter's file is not a shard."""
    write_tensors(tmp_path / "a" / "model.safetensors", {"x": np.ones(2)})
    write_tensors(tmp_path / "a" / "consolidated.safetensors", {"x": np.zeros(2)})
    assert [f.name for f in open_checkpoint(tmp_path / "a").files] == ["model.safetensors"]
    write_tensors(tmp_path / "b" / "part2.safetensors", {"y": np.ones(2)})
    write_tensors(tmp_path / "b" / "part1.safetensors", {"x": np.ones(2)})
    assert set(open_checkpoint(tmp_path / "b").tensors) == {"x", "y"}
    index = {"weight_map": {"x": "part1.safetensors"}}
    (tmp_path / "b" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(open_checkpoint(tmp_path / "b").tensors) == {"x"}
    assert open_checkpoint(tmp_path / "b").name == "b"


def test_the_library_wrote_it(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    tensors = {
        "b": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32),
        "a": np.arange(4),
        "é": np.ones((2, 0)),
    }
    library.save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "np", "note": "ü"})
    found, metadata = read_header(tmp_path / "m.safetensors")
    assert metadata == {"format": "np", "note": "ü"} and set(found) == set(tensors)
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        for name, values in tensors.items():
            np.testing.assert_array_equal(checkpoint.read(name).reshape(values.shape), values)


def test_the_library_reads_ours(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors")
    spec = FileSpec("m.safetensors", (TensorSpec("b", FLOAT, (2, 3)), TensorSpec("ä", INT, (2,))), {"format": "pt"})
    out = OutputFile(tmp_path / spec.name, spec.nbytes)
    out.write(spec.header())
    out.write(np.arange(6, dtype=np.float32))
    out.write(np.array([7, -8]))
    out.close()
    assert out.sha256 == hashlib.sha256((tmp_path / spec.name).read_bytes()).hexdigest()
    with library.safe_open(tmp_path / spec.name, "np") as opened:
        assert opened.get_tensor("b").tolist() == [[0, 1, 2], [3, 4, 5]] and opened.get_tensor("ä").tolist() == [7, -8]
        assert opened.metadata() == {"format": "pt"}


def test_data_starts_at_a_multiple_of_eight() -> None:
    for length in range(1, 12):
        header = FileSpec("f", (TensorSpec("n" * length, FLOAT, (1,)),), {}).header()
        assert len(header) % 8 == 0 and int.from_bytes(header[:8], "little") == len(header) - 8


def test_same_tensors_same_bytes() -> None:
    specs = [TensorSpec(n, BITS, (4,)) for n in "abc"]
    assert (
        FileSpec("x", tuple(specs), {"format": "pt"}).header() == FileSpec("y", tuple(specs), {"format": "pt"}).header()
    )


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(1, 150))
def test_shards(sizes: list[int], limit: int) -> None:
    """Every tensor once and in order, no shard beyond the limit that could be smaller, none empty."""
    specs = [TensorSpec(f"t{i:02d}", BITS, (n,)) for i, n in enumerate(sizes)]
    files = shard_plan(specs, limit)
    assert [t for f in files for t in f.tensors] == specs
    for file in files:
        assert file.tensors and (sum(t.nbytes for t in file.tensors) <= limit or len(file.tensors) == 1)
    assert len({f.name for f in files}) == len(files)
    if len(files) > 1:
        index = json.loads(index_json(files))
        assert index["metadata"]["total_size"] == 2 * sum(sizes)
        assert set(index["weight_map"]) == {s.name for s in specs}


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("200m", 2 * 10**8), ("1.5GiB", 3 * 2**29), ("512", 512), ("0.5 k", 500), ("10KIB", 10240), (".5b", None),
     ("-1GB", None), ("0", None), ("GB", None), ("5 apples", None), ("", None), ("1e9", None), ("nan", None)],
)  # fmt: skip
def test_sizes(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(UsageError, match="is not a size"):
            byte_size(text)
    else:
        assert byte_size(text) == size


def test_output_file_refuses_more_than_planned(tmp_path: Path) -> None:
    out = OutputFile(tmp_path / "f", 10)
    out.write(b"12345678")
    with pytest.raises(NettError, match="more bytes than planned"):
        out.write(b"abc")
    out.write(b"90")
    out.sync()
    out.close()
    assert (tmp_path / "f").read_bytes() == b"1234567890" and out.position == 10


def test_output_file_is_taken_up(tmp_path: Path) -> None:
    """What is there is hashed again, so that the hash at the end covers all of it."""
    first = OutputFile(tmp_path / "f", 10)
    first.write(b"12345")
    digest = first.sha256
    first.write(b"xx")  # after the last mark: written over
    first.close()
    again = OutputFile(tmp_path / "f", 10, resume_at=5, expect=digest)
    again.write(b"67890")
    again.close()
    assert (tmp_path / "f").read_bytes() == b"1234567890"
    assert again.sha256 == hashlib.sha256(b"1234567890").hexdigest()
    with pytest.raises(NettError, match="does not hold what its journal says"):
        OutputFile(tmp_path / "f", 10, resume_at=5, expect="0" * 64)


def test_empty_file_of_no_tensors(tmp_path: Path) -> None:
    write_raw(tmp_path / "m.safetensors", {}, b"")
    assert read_header(tmp_path / "m.safetensors") == ({}, {})
    write_raw(tmp_path / "n.safetensors", {"__metadata__": None}, b"")
    assert read_header(tmp_path / "n.safetensors") == ({}, {})


def test_folder_called_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "x" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(Refused, match="holds no checkpoint"):
        open_checkpoint(tmp_path / "x")
    with pytest.raises(Refused):
        read_header(tmp_path / "x" / "model.safetensors")


def test_padding_after_the_header_is_blank(tmp_path: Path) -> None:
    """Writers pad with blanks; what is not JSON after the object is refused."""
    entry: Any = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    write_raw(tmp_path / "m.safetensors", json.dumps(entry).encode() + b"   ", bytes(4))
    assert set(read_header(tmp_path / "m.safetensors")[0]) == {"a"}
    write_raw(tmp_path / "m.safetensors", json.dumps(entry).encode() + b"}", bytes(4))
    with pytest.raises(Refused, match="not valid JSON"):
        read_header(tmp_path / "m.safetensors")
    assert header_of(write_tensors(tmp_path / "k.safetensors", {"a": np.ones(1)}))
