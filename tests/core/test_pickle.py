"""Torch's files: every format torch ever wrote and every way its tensors can lie, against torch itself; and files
that want to run code, which are refused without running any."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.checkpoint import open_checkpoint
from nett.core.errors import Refused
from support.cli import nett
from support.tensors import write_tensors

torch = pytest.importorskip("torch")


def tensors() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "w": torch.randn(5, 7),
        "half": torch.randn(4, 3).half(),
        "brain": torch.randn(6).bfloat16(),
        "eight": torch.randn(9).to(torch.float8_e4m3fn),
        "long": torch.arange(6).reshape(2, 3),
        "flag": torch.tensor([True, False]),
        "point": torch.tensor(3.5),
        "none": torch.zeros(0, 4),
    }


def as_bytes(tensor: Any) -> bytes:
    """A tensor's elements in order, by torch."""
    flat = tensor.detach().contiguous().reshape(-1)
    blob: bytes = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return blob


def assert_same(path: Path, expected: dict[str, Any]) -> None:
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            info = checkpoint.tensors[name]
            assert info.shape == tuple(tensor.shape) and f"torch.{info.dtype.alias}" == str(tensor.dtype)
            assert checkpoint.read(name).tobytes() == as_bytes(tensor), name
            third = info.size // 3
            parts = [checkpoint.read(name, a, b).tobytes() for a, b in ((0, third), (third, info.size))]
            assert b"".join(parts) == as_bytes(tensor), name


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("ending", [".bin", ".pt", ".pth", ".ckpt"])
def test_both_formats_under_every_ending(tmp_path: Path, zipped: bool, ending: str) -> None:
    content = tensors()
    if not zipped:
        del content["eight"]  # torch itself cannot load float8 from its old format
    torch.save(content, tmp_path / f"x{ending}", _use_new_zipfile_serialization=zipped)
    assert_same(tmp_path / f"x{ending}", content)


@pytest.mark.parametrize(
    "wrap",
    [
        OrderedDict,
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model_state_dict": OrderedDict(t), "optimizer": {"lr": 0.1}},
        lambda t: {"model": t},
        lambda t: t | {"epoch": 3, "note": "not a tensor"},
        lambda t: {n: torch.nn.Parameter(x) if x.is_floating_point() else x for n, x in t.items()},
    ],
)
def test_containers(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    torch.save(wrap(tensors()), tmp_path / "x.pt")
    assert_same(tmp_path / "x.pt", tensors())


def test_every_way_to_lie_in_memory(tmp_path: Path) -> None:
    """Views, strides, broadcasts, shared memory: read in the order of the elements, in any range."""
    torch.manual_seed(1)
    whole = torch.randn(6, 8, 4)
    lying = {
        "transposed": whole[0].T,
        "permuted": whole.permute(2, 0, 1),
        "sliced": whole[1:5:2, ::3],
        "row": whole[3],
        "broadcast": torch.randn(1, 5).expand(4, 5),
        "column": whole[:, 0, 0],
        "brain": whole.bfloat16().transpose(0, 1),
        "eight": whole.to(torch.float8_e5m2).transpose(0, 2),
    }
    torch.save(lying, tmp_path / "x.pt")
    assert_same(tmp_path / "x.pt", lying)
    rng = np.random.default_rng(0)
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        for name, tensor in lying.items():
            flat, width = as_bytes(tensor), tensor.element_size()
            for start, stop in np.sort(rng.integers(0, tensor.numel() + 1, (20, 2)), axis=1):
                assert checkpoint.read(name, int(start), int(stop)).tobytes() == flat[start * width : stop * width]


def test_two_names_of_one_tensor_are_known(tmp_path: Path) -> None:
    one = torch.randn(4, 4)
    torch.save({"a": one, "b": one, "c": one.T, "d": one[:2], "e": one.clone()}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert checkpoint.aliases == {"b": "a"}


def test_shards_with_an_index(tmp_path: Path) -> None:
    all_of_them = tensors()
    names = list(all_of_them)
    split = {"pytorch_model-00001-of-00002.bin": names[:3], "pytorch_model-00002-of-00002.bin": names[3:]}
    for file, inside in split.items():
        torch.save({n: all_of_them[n] for n in inside}, tmp_path / file)
    index = {"weight_map": {n: f for f, inside in split.items() for n in inside}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same(tmp_path, all_of_them)
    nett("convert", str(tmp_path), str(tmp_path / "out")).succeeded()
    assert_same(tmp_path / "out", all_of_them)
    index["weight_map"]["w"] = "pytorch_model-00002-of-00002.bin"
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(Refused, match="says that 'w' lies in"):
        open_checkpoint(tmp_path)
    index["weight_map"]["w"] = "../pytorch_model-00001-of-00002.bin"
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(Refused, match="not a plain file name"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    assert_same(tmp_path, all_of_them)  # the files alone say what they hold
    torch.save({"w": torch.zeros(2)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(Refused, match="'w' also stands in another file"):
        open_checkpoint(tmp_path)


def test_safetensors_beside_a_torch_file_go_first(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    write_tensors(tmp_path / "model.safetensors", {"v": np.ones(3)})
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["v"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: {"w": torch.randn(3, 3).to_sparse()}, "sparse_coo"),
        (lambda: {"w": torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)}, "quantised"),
        (lambda: {"w": torch.randn(3, dtype=torch.complex64)}, "complex64"),
        (lambda: {"w": torch.randn(3, device="meta")}, "meta"),
        (lambda: [torch.randn(3)], "holds a list"),
        (lambda: {"epoch": 3}, r"holds no tensors.*'epoch'"),
        (lambda: {3: torch.randn(3)}, "not a string"),
        (lambda: torch.randn(3), "holds a Tensor"),
    ],
)
def test_what_is_no_dictionary_of_dense_tensors(tmp_path: Path, make: Callable[[], Any], said: str) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: quantised tensors are going away
        torch.save(make(), tmp_path / "x.pt")
        with pytest.raises(Refused, match=said):
            open_checkpoint(tmp_path / "x.pt")


# -- broken and hostile --------------------------------------------------------------------------------------------


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trap,))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["value", "beside", "key of a container"])
def test_code_is_refused_and_not_run(tmp_path: Path, zipped: bool, place: str) -> None:
    trap = tmp_path / "trap"
    content: Any = {"w": Code(trap)}
    if place == "beside":
        content = {"w": torch.zeros(3), "x": Code(trap)}
    elif place != "value":
        content = {"state_dict": {"w": torch.zeros(3)}, "x": [Code(trap)]}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(Refused, match="wants to run code"):
        open_checkpoint(tmp_path / "x.pt")
    assert not trap.exists()


def test_plain_pickles_that_torch_did_not_write(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (tmp_path / "code.pt").write_bytes(pickle.dumps(Code(trap)))
    with pytest.raises(Refused, match="wants to run code"):
        open_checkpoint(tmp_path / "code.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"w": [1.0, 2.0]}))
    with pytest.raises(Refused, match=r"not a torch file|holds no tensors"):
        open_checkpoint(tmp_path / "plain.pt")
    assert not trap.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.97])
def test_truncated(tmp_path: Path, zipped: bool, share: float) -> None:
    torch.save({"w": torch.randn(64, 64)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    blob = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(blob[: int(len(blob) * share)])
    with pytest.raises(Refused, match="not a torch file that can be read"):
        open_checkpoint(tmp_path / "x.pt")


def test_a_storage_shorter_than_its_tensor(tmp_path: Path) -> None:
    """The archive is whole, but the data of one tensor in it are not."""
    torch.save({"w": torch.arange(4096.0)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            blob = old.read(item)
            new.writestr(item.filename, blob[:100] if item.filename.endswith("/data/0") else blob)
    with pytest.raises(Refused):
        open_checkpoint(tmp_path / "y.pt")


def test_bytes_at_random(tmp_path: Path) -> None:
    """Flipped bytes: it loads, or is refused; it never ends otherwise."""
    torch.save({"w": torch.randn(8, 8), "v": torch.arange(5)}, tmp_path / "zip.pt")
    torch.save({"w": torch.randn(8, 8)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    rng = np.random.default_rng(7)
    for name in ("zip.pt", "old.pt"):
        good = (tmp_path / name).read_bytes()
        for _ in range(60):
            blob = bytearray(good)
            for at in rng.integers(0, len(blob), 3):
                blob[at] = rng.integers(0, 256)
            (tmp_path / "x.pt").write_bytes(blob)
            try:
                with open_checkpoint(tmp_path / "x.pt") as checkpoint:
                    for one in checkpoint.tensors:
                        checkpoint.read(one)
            except Refused:
                pass
