"""The header probe counts what the headers say, and reads nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nett.scan import engine
from nett.scan.header import header
from support.scanning import in_every_container, model, write
from support.tensors import header_of


def test_counts_are_those_of_the_header(tmp_path: Path) -> None:
    tensors = model() | {"model.layers.1.steps": np.arange(7), "flag": np.array([True])}
    types = dict.fromkeys(tensors, "F32") | {"model.norm.weight": "BF16", "lm_head.weight": "F16"}
    path = write(tmp_path / "m", tensors, types)
    said = header([path])
    assert said.found == ()
    expected: dict[str, int] = {}
    for entry in header_of(Path(path) / "model.safetensors").values():
        start, stop = entry["data_offsets"]
        expected[entry["dtype"]] = expected.get(entry["dtype"], 0) + stop - start
    figures = said.figures[path]
    assert figures["bytes_by_type"] == expected
    assert figures["layers"] == 2
    assert figures["largest"] == "model.embed_tokens.weight"  # 48 x 16 float32; the head is half of that


def test_the_same_of_every_container(tmp_path: Path) -> None:
    paths = in_every_container(tmp_path, model())
    said = header(list(paths.values())).figures
    assert list(said) == list(paths.values())
    assert len({str(about) for about in said.values()}) == 1


def test_quantised_types_count_their_packed_bytes(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "q.gguf"
    writer = gguf.GGUFWriter(path, "nameless")
    values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("w", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert header([str(path)]).figures[str(path)]["bytes_by_type"] == {"Q8_0": 4 * 64 // 32 * 34}


def test_reads_headers_only(tmp_path: Path) -> None:
    """What the scan says was shown to the probe are the bytes of the headers."""
    path = write(tmp_path / "m", model())
    (run,) = engine.run([path], only=["header"]).probes
    file = Path(path) / "model.safetensors"
    assert run.bytes_read == file.stat().st_size - sum(a.nbytes for a in model().values())


def test_nothing_in_it(tmp_path: Path) -> None:
    path = write(tmp_path / "m", {})
    assert header([path]).figures[path] == {"bytes_by_type": {}, "layers": 0, "largest": None}
