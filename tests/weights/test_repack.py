"""Models that were quantised and saved as floats come back as whole numbers, and as floats again, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import nett
from nett.core.cards import find_card
from nett.core.errors import NettError, ProofFailed, Refused, UsageError
from nett.core.receipt import read_receipt
from nett.weights import engine
from nett.weights.protocol import Quantised

CARD = "weights/repack"


def made(bits: int, group: int, symmetric: bool, dtype: torch.dtype, seed: int = 0) -> Any:
    """(q - zero) * scale of random numbers, each step in ``dtype``: 12 rows of 64."""
    random = torch.Generator().manual_seed(seed)
    top = 1 << bits - 1
    codes = torch.randint(-top, top, (12, 64 // group, group), generator=random).to(dtype)
    scale = (torch.rand(12, 64 // group, 1, generator=random) * 0.01 + 0.001).to(dtype)
    zero = torch.randint(-top, top, (12, 64 // group, 1), generator=random).to(dtype)
    return ((codes if symmetric else codes - zero) * scale).reshape(12, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bits", "group", "symmetric"), [(4, 32, True), (8, 64, True), (3, 64, True), (4, 32, False), (2, 16, False)])  # fmt: skip
def test_numbers_come_back(bits: int, group: int, symmetric: bool, dtype: torch.dtype) -> None:
    weight = made(bits, group, symmetric, dtype)
    found = nett.weights.repack(weight)
    assert isinstance(found, Quantised) and found.dense().dtype == dtype
    kind = torch.int16 if dtype.itemsize == 2 else torch.int32
    assert torch.equal(found.dense().view(kind), weight.view(kind))
    size = (
        found.bits + 8 * found.scale.element_size() / found.group + (found.zero is not None) * found.bits / found.group
    )
    given = bits + 8 * dtype.itemsize / group + (not symmetric) * bits / group
    assert size <= given + 4  # no finer grid than was needed, but for widths that are not looked for
    assert found.bits < 8 * dtype.itemsize


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q5_0"])
def test_a_dequantised_gguf(name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    values = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32) * np.float32(0.02)
    weight = torch.from_numpy(np.asarray(gguf.dequantize(gguf.quantize(values, kind), kind)))
    found = nett.weights.repack(weight)
    assert isinstance(found, Quantised) and found.group == 32
    assert torch.equal(found.dense().view(torch.int32), weight.view(torch.int32))


def test_what_has_no_such_form_stays() -> None:
    kind = gguf.GGMLQuantizationType.Q4_1
    values = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    minima = torch.from_numpy(np.asarray(gguf.dequantize(gguf.quantize(values, kind), kind)))
    signed = made(4, 32, True, torch.float32)
    signed[0, :2] = torch.tensor([0.0, -0.0])
    off = made(4, 32, True, torch.float32)
    off[3, 5] = torch.nextafter(off[3, 5], torch.tensor(1.0))
    lost = made(4, 32, True, torch.float32)
    lost[0, 0] = torch.nan
    for weight in (minima, signed, off, lost, torch.from_numpy(values), torch.full((8, 64), 0.5)):
        assert nett.weights.repack(weight) is weight


@pytest.fixture(scope="module")
def rounded(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Llama with all but one of its layers rounded and saved as bfloat16."""
    folder = tmp_path_factory.mktemp("rounded") / "model"
    shutil.copytree(llama, folder)
    tensors = load_file(folder / "model.safetensors")
    for seed, name in enumerate(n for n, t in tensors.items() if "proj" in n and "0.self_attn.q_proj" not in n):
        answer = nett.weights.rtn(tensors[name], bits=4 if "mlp" in name else 8, group=32, symmetric="up" not in name)
        tensors[name] = answer.dense() + 0.0  # no zeros below zero
        assert seed >= 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def out(rounded: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "out"
    engine.run(find_card(CARD), [str(rounded)], {}, out=folder, eval=other, length=24, threads=1)
    return folder


def test_receipt_and_files(rounded: Path, out: Path) -> None:
    receipt = read_receipt(out)
    assert receipt["guarantee"] == "exact" and receipt["edges"][0]["error"] == 0.0 and receipt["proof"] == "kept"
    assert receipt["edges"][0]["bytes_freed"] > 0
    assert receipt["figures"]["judged"]["kl"]["mean"] == 0.0 and receipt["figures"]["judged"]["flips"]["mean"] == 0.0
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    assert "model.layers.0.self_attn.q_proj" in said["ignore"]
    stored = load_file(out / "model.safetensors")
    assert (
        "model.layers.0.self_attn.q_proj.weight" in stored and "model.layers.0.mlp.up_proj.weight_zero_point" in stored
    )
    assert all(c["ok"] for c in engine.verify(out, receipt))


def test_restored_bit_for_bit(rounded: Path, out: Path, tmp_path: Path) -> None:
    receipt = read_receipt(out)
    with pytest.raises(UsageError, match="where the dense model goes"):
        engine.restore(out, receipt)
    assert "would write" in engine.restore(out, receipt, out=tmp_path / "dense", dry_run=True)["say"][0]
    engine.restore(out, receipt, out=tmp_path / "dense", task=None, base=None)
    before, after = (load_file(f / "model.safetensors") for f in (rounded, tmp_path / "dense"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and torch.equal(
            after[name].view(torch.int16), tensor.view(torch.int16)
        )
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")


def test_a_changed_byte_is_found(out: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(out, copied)
    tensors = load_file(copied / "model.safetensors")
    tensors["model.layers.1.mlp.gate_proj.weight_packed"][0, 0] ^= 1
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    receipt = read_receipt(copied)
    assert not all(c["ok"] for c in engine.verify(copied, receipt))
    with pytest.raises(ProofFailed, match="gate_proj"):
        engine.restore(copied, receipt, out=tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


def test_refusals(llama: Path, rounded: Path, tmp_path: Path) -> None:
    def run(model: Path, **more: Any) -> None:
        engine.run(find_card(CARD), [str(model)], {}, out=tmp_path / "out", threads=1, **more)

    with pytest.raises(Refused, match="none of its 21 layers"):
        run(llama)
    with pytest.raises(UsageError, match="keeps every bit"):
        run(rounded, dtype="float16")
    with pytest.raises(UsageError, match="there already"):
        run(rounded, format="dense")
    with pytest.raises(UsageError, match="float16 in GGUF"):
        run(rounded, format="gguf")
    assert list(tmp_path.iterdir()) == [] and issubclass(Refused, NettError)
