"""Tensors on a quantisation grid are found exactly where every element lies on it."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import gguf
import numpy as np
import pytest

from nett.core import sweep
from nett.core.dtypes import DTYPES
from nett.scan import engine
from nett.scan.quantisation_grid import quantisation_grid
from support.scanning import edges, in_every_container, model, parsed, write
from support.tensors import Array

BITS = {"Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5}  # an element, as llama.cpp stores it


def on_grid(name: str, shape: tuple[int, int] = (64, 64), seed: int = 0) -> Array:
    kind = gguf.GGMLQuantizationType[name]
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(0.02)
    return np.asarray(gguf.dequantize(gguf.quantize(values, kind), kind))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_dequantised_model(tmp_path: Path, dtype: str) -> None:
    tensors = {name: on_grid(name) for name in BITS} | {"plain": model()["lm_head.weight"].repeat(9, axis=0)}
    path = write(tmp_path / "a model", tensors, dtype)
    found = quantisation_grid([path])
    (finding,) = found.found
    freed = {p.target.partition("::")[2]: p.bytes_freed for p in finding.parts}
    size = DTYPES[dtype].bytes
    assert freed == {name: 64 * 64 * size - ceil(64 * 64 * bits / 8) for name, bits in BITS.items()}
    assert finding.edge.target == path and finding.edge.bytes_freed == sum(freed.values())
    assert (finding.edge.guarantee, finding.edge.error, finding.edge.method) == ("exact", 0.0, "store/add")
    assert parsed(str(finding.edge.command)).params["into"] == "STORE"
    assert found.figures[path]["grids"] == dict.fromkeys(BITS, 64 * 64)


@pytest.mark.parametrize("place", [0, 2047, 2048, 4095])
def test_one_element_decides(tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever unit it stands."""
    monkeypatch.setattr(sweep, "UNIT", 1024)
    values = on_grid("Q4_1")
    assert edges(quantisation_grid([write(tmp_path / "a", {"w": values})]))
    values.reshape(-1)[place] = np.float32(1 / 3)
    assert quantisation_grid([write(tmp_path / "b", {"w": values})]).found == ()
    values.reshape(-1)[place] = np.nan
    assert quantisation_grid([write(tmp_path / "c", {"w": values})]).found == ()


def test_units_that_need_a_wider_grid_are_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of Q4_0, of one number each, and of Q8_0: the whole lies on Q8_0, whichever comes first."""
    monkeypatch.setattr(sweep, "UNIT", 1024)
    parts = {"four": on_grid("Q4_0", (32, 64)), "eight": on_grid("Q8_0", (32, 64)), "one": np.full((16, 64), 0.5, "f4")}
    for order in (("four", "eight", "one"), ("one", "eight", "four"), ("eight", "four")):
        path = write(tmp_path / "-".join(order), {"w": np.vstack([parts[p] for p in order])})
        assert quantisation_grid([path]).figures[path]["grids"] == {"Q8_0": 64 * sum(len(parts[p]) for p in order)}
    odd = np.full((16, 64), 1 / 3, np.float32)  # one number, but no float16 times a code
    path = write(tmp_path / "odd", {"w": np.vstack([parts["four"], odd])})
    assert "Q4_0" not in quantisation_grid([path]).figures.get(path, {}).get("grids", {})
    assert quantisation_grid([write(tmp_path / "alone", {"w": odd.repeat(4, axis=0)})]).found == ()


def test_round_to_nearest_by_row(tmp_path: Path) -> None:
    """w = round(w / s) s with a float32 scale for each row of 128."""
    values = model(shapes={"w": (64, 128)})["w"]
    scale = np.abs(values).max(1, keepdims=True) / np.float32(127)
    path = write(tmp_path / "m", {"w": np.rint(values / scale) * scale})
    (edge,) = edges(quantisation_grid([path]))
    assert edge.bytes_freed == 64 * 128 * 4 - 64 * 128 - 64 * 4
    assert list(quantisation_grid([path]).figures[path]["grids"]) == ["int8g128z"]


def test_ordinary_models_and_what_is_no_float(tmp_path: Path) -> None:
    ordinary = {n: a.repeat(9, axis=0) for n, a in model().items()}
    for dtype in ("F32", "BF16", "F16"):
        assert quantisation_grid([write(tmp_path / dtype, ordinary, dtype)]).found == ()
    assert quantisation_grid([write(tmp_path / "i", {"w": np.arange(4096) % 16}, "I8")]).found == ()
    assert quantisation_grid([write(tmp_path / "s", {"w": on_grid("Q8_0", (1, 64))})]).found == ()


def test_every_container_and_any_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"w": on_grid("Q5_1"), "v": on_grid("Q4_0", seed=3)}
    paths = in_every_container(tmp_path, tensors)
    assert {sum(e.bytes_freed for e in edges(quantisation_grid([p]))) for p in paths.values()} == {
        2 * 64 * 64 * 4 - 64 * 64 * 6 // 8 - 64 * 64 * 9 // 16
    }
    monkeypatch.setattr(sweep, "UNIT", 1024)
    monkeypatch.setattr(sweep, "JOB", 1 << 13)
    one, four = (engine.run([paths["folder"]], threads=t, only=["quantisation_grid"]).as_json() for t in (1, 4))
    assert one["edges"] == four["edges"] and len(one["edges"]) == 1


def test_no_byte_is_freed_twice(tmp_path: Path) -> None:
    """On a grid, and of few byte values: the better of the two counts."""
    values = on_grid("Q8_0", (128, 64))
    found = engine.run([write(tmp_path / "m", {"w": values})], only=["quantisation_grid", "byte_planes"])
    assert {e.kind for e in found.edges} == {"quantisation_grid", "byte_planes"}
    assert found.lossless == max(e.bytes_freed for e in found.edges) == values.nbytes - values.size * 17 // 16


def test_what_loaders_can_read_packed_has_its_command(tmp_path: Path) -> None:
    """Of a model with a config, its layers' matrices on grids without minima; bytes as compressed-tensors keeps them."""
    shapes = {"model.layers.0.a.weight": "Q4_0", "model.layers.0.b.weight": "Q4_1", "model.embed.weight": "Q8_0"}
    path = write(tmp_path / "m", {n: on_grid(kind) for n, kind in shapes.items()})
    assert len(quantisation_grid([path]).found) == 1
    (tmp_path / "m" / "config.json").write_text('{"model_type": "llama"}')
    store, packed = (f.edge for f in quantisation_grid([path]).found)
    assert (store.kind, packed.kind, packed.method) == ("quantisation_grid", "repackable_grid", "weights/repack")
    assert packed.bytes_freed == 64 * 64 * 4 - 64 * 64 // 2 - 64 * 64 // 32 * 4
    assert str(parsed(str(packed.command)).params["out"]) == "OUT" and (packed.error, packed.guarantee) == (
        0.0,
        "exact",
    )
