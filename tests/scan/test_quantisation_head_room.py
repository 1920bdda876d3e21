"""What 8 and 4 bits would free, against rounding written out and the files that nett weights writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nett.core.tiny import write_llama
from nett.scan import engine
from nett.scan.quantisation_head_room import quantisation_head_room
from support.scanning import model, parsed, write
from support.tensors import Array, read_tensors


def rounded(matrix: Array, bits: int, group: int) -> float:
    values = matrix.astype(np.float64).reshape(len(matrix), -1, group)
    step = np.abs(values).max(-1, keepdims=True) * 2 / (2**bits - 1)
    codes = np.clip(np.round(values / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return float(np.linalg.norm(codes * step - values) / np.linalg.norm(values))


@pytest.mark.parametrize(("columns", "group"), [(256, 128), (96, 32), (50, 50)])
def test_errors_and_bytes(tmp_path: Path, columns: int, group: int) -> None:
    """All rows looked at: the error is that of the whole matrix."""
    tensors = model(shapes={"layers.0.w": (100, columns)})
    path = write(tmp_path / "m", tensors)
    said = quantisation_head_room([path], rows=100)
    assert [f.edge.bytes_freed for f in said.found] == [
        100 * columns * 4 - 100 * columns * bits // 8 - 100 * columns // group * 4 for bits in (8, 4)
    ]
    for finding, bits in zip(said.found, (8, 4), strict=True):
        (part,) = finding.parts
        assert part.error == pytest.approx(rounded(tensors["layers.0.w"], bits, group), rel=1e-9)
        assert finding.edge.error == pytest.approx(part.error) and finding.edge.command is None
    few = quantisation_head_room([path], rows=16)
    assert few.found[1].edge.error == pytest.approx(said.found[1].edge.error, rel=0.1)


def test_commands_for_models(tmp_path: Path) -> None:
    path = str(write_llama(tmp_path / "a llama", hidden=128, inter=256, heads=4, kv_heads=2))
    said = quantisation_head_room([path])
    assert [f.edge.method for f in said.found] == ["weights/rtn", "weights/gptq"]
    for finding, bits in zip(said.found, (8, 4), strict=True):
        assert parsed(str(finding.edge.command)).params["bits"] == str(bits)
        names = {p.target.partition("::")[2] for p in finding.parts}
        assert names == {n for n, a in read_tensors(Path(path)).items() if a.ndim == 2 and "layers" in n}


def test_what_is_no_finding(tmp_path: Path) -> None:
    tensors = model(
        shapes={"layers.0.w": (64, 128), "embed": (512, 64), "layers.0.bias": (9000,), "layers.1.small": (8, 8)}
    )
    tensors["layers.0.w"][0, 0] = np.nan
    tensors["layers.2.zero"] = np.zeros((64, 128), np.float32)
    assert quantisation_head_room([write(tmp_path / "m", tensors)]).found == ()
    assert (
        quantisation_head_room(
            [write(tmp_path / "i", {"layers.0.w": np.arange(1 << 15).reshape(128, -1) % 100}, "I8")]
        ).found
        == ()
    )


def test_some_rows_only(tmp_path: Path) -> None:
    path = write(tmp_path / "m", model(shapes={"layers.0.w": (4096, 64)}))
    run = engine.run([path], only=["quantisation_head_room"])
    assert run.probes[0].bytes_read == 16 * 64 * 4
    assert {e.guarantee for e in run.edges} == {"measured"} and run.lossless == 0
