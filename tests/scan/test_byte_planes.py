"""The entropies of byte planes: by the formula, near what they are where only a part is counted, and of plain tensors
only."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nett.core import sweep
from nett.core.codec import BLOCK, Mode, choose_mode, encode_block
from nett.core.dtypes import DTYPES
from nett.scan.byte_planes import Planes, byte_planes, entropies
from support.scanning import edges, in_every_container, model, parsed, write
from support.tensors import Array


def planes_by_formula(bits: Array, width: int, is_float: bool) -> list[float]:
    """Order-0 entropy, in bits, of each byte of each number, after the sign was moved to the lowest place."""
    found = []
    numbers = [int(v) for v in bits]
    if is_float and width > 1:
        numbers = [(2 * v) % 256**width + (2 * v) // 256**width for v in numbers]
    for k in range(width):
        values = [v >> 8 * k & 255 for v in numbers]
        share = [values.count(v) / len(values) for v in set(values)]
        found.append(-sum(p * np.log2(p) for p in share))
    return found


@pytest.mark.parametrize("name", ["BF16", "F16", "F32", "F64", "F8_E4M3", "I8", "I32", "BOOL"])
def test_entropies_are_what_the_formula_says(name: str) -> None:
    dtype, rng = DTYPES[name], np.random.default_rng(0)
    raw = rng.integers(0, 256, 300 * dtype.bytes, dtype=np.uint8) & 0x3F
    if name == "BOOL":
        raw &= 1
    bits, error = entropies(Planes(dtype).look([raw.view(dtype.raw)]))
    expected = planes_by_formula(raw.view(f"u{dtype.bytes}"), dtype.bytes, dtype.is_float)
    assert bits == pytest.approx(expected) and (error >= 0).all()


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=4))
def test_every_element_of_small_units_is_counted_once(sizes: list[int]) -> None:
    fold, seen = Planes(DTYPES["BF16"]), None
    for size in sizes:
        seen = fold.join(seen, fold.look([np.arange(size, dtype=np.uint16)]))
    assert seen is not None
    counted = seen.sum(axis=(0, 2))
    assert (counted == sum(min(s, 4096) for s in sizes)).all()


def wide(count: int = 1 << 20, seed: int = 0) -> Array:
    """Weights whose size differs by row, as in a model: runs differ in their entropy."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((256, count // 256)) * np.exp(rng.normal(-4, 1, (256, 1)))).astype(np.float32)


@pytest.mark.parametrize("name", ["BF16", "F16", "F32"])
def test_an_estimate_holds_what_all_elements_say(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "m", {"w": wide()}, name)
    said = byte_planes([path]).figures[path]
    from nett.core.checkpoint import open_checkpoint

    with open_checkpoint(Path(path)) as checkpoint:
        raw = checkpoint.read("w").view(np.uint8)
    width = DTYPES[name].bytes
    whole = np.minimum(8, [e if e <= 7.9 else 8 for e in _entropies(raw, width)]).mean() / 8 * raw.size
    assert abs(said["estimated_bytes"] - whole) <= said["error_95"] < 0.05 * raw.size
    (edge,) = edges(byte_planes([path]))
    assert edge.bytes_freed == raw.size - said["estimated_bytes"] - said["error_95"]
    mode, _ = choose_mode(raw, width)
    blocks = [encode_block(raw[at : at + BLOCK], Mode(width, "rotated")) for at in range(0, raw.size, BLOCK)]
    assert mode.form == "rotated" and raw.size - sum(b.nbytes for b in blocks) > 0.95 * edge.bytes_freed


def _entropies(raw: Array, width: int) -> list[float]:
    bits = raw.view(f"u{width}")
    turned = (bits << 1) | (bits >> (8 * width - 1))
    found = []
    for k in range(width):
        share = np.bincount((turned >> 8 * k).astype(np.uint8), minlength=256) / turned.size
        found.append(float(-(share[share > 0] * np.log2(share[share > 0])).sum()))
    return found


def test_a_third_of_a_bfloat16_file_is_air(tmp_path: Path) -> None:
    tensors = {"a": wide(1 << 18) * np.float32(0.02), "b": model()["model.norm.weight"]}
    path = write(tmp_path / "a folder", tensors, "BF16")
    found = byte_planes([path])
    (finding,) = found.found
    assert 0.28 < finding.edge.bytes_freed / (2 << 18) < 0.35
    assert finding.edge.target == path and [p.target for p in finding.parts] == [f"{path}::a"]  # b is too small
    assert finding.edge.bytes_freed == sum(p.bytes_freed for p in finding.parts)
    assert (finding.edge.guarantee, finding.edge.error, finding.edge.method) == ("exact", 0.0, "store/add")
    assert parsed(str(finding.edge.command)).params["into"] == "STORE"
    low, high = found.figures[path]["bits"]["BF16"]
    assert low > 7.9 and high < 5


def test_random_bytes_and_small_tensors_hold_no_air(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, 1 << 16, dtype=np.uint8)
    assert byte_planes([write(tmp_path / "n", {"w": noise}, "U8")]).found == ()
    assert (
        byte_planes([write(tmp_path / "s", {"w": np.zeros(1000, np.float32), "none": np.zeros(0, np.float32)})]).found
        == ()
    )


def test_planes_of_zeros_are_free(tmp_path: Path) -> None:
    (edge,) = edges(byte_planes([write(tmp_path / "z", {"w": np.zeros((64, 64), np.float32)})]))
    assert edge.bytes_freed == 64 * 64 * 4
    path = write(tmp_path / "i", {"w": np.arange(4096, dtype=np.int64) % 256}, "I64")
    (edge,) = edges(byte_planes([path]))
    assert edge.bytes_freed == 7 * 4096 and byte_planes([path]).figures[path]["error_95"] == 0


def test_every_container_and_any_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nett.scan import engine

    tensors = {"w": wide(1 << 14), "v": model()["lm_head.weight"].repeat(8, axis=0)}
    freed = {}
    for name, path in in_every_container(tmp_path, tensors).items():
        freed[name] = sum(e.bytes_freed for e in edges(byte_planes([path])))
    assert len(set(freed.values())) == 1 and freed["file"] > 0
    monkeypatch.setattr(sweep, "UNIT", 999)
    monkeypatch.setattr(sweep, "JOB", 1 << 14)
    path = str(tmp_path / "folder")
    one, four = (engine.run([path], threads=t, only=["byte_planes"]).as_json() for t in (1, 4))
    assert one["edges"] == four["edges"] and one["probes"][0]["figures"] == four["probes"][0]["figures"]
    assert ceil(one["bytes_freed"]) > 0


def test_quantised_tensors_of_a_gguf_are_left_out(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "nameless")
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("w", gguf.quantize(wide(1 << 14), kind), raw_dtype=kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    assert byte_planes([str(tmp_path / "m.gguf")]).found == ()
