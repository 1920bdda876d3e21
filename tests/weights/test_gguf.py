"""GGUF files: blocks by hand, the same model for transformers, and what has no place in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from nett.core.blocks import Linear, Walk, open_skeleton
from nett.core.cards import find_card
from nett.core.checkpoint import open_checkpoint
from nett.core.errors import Refused, UsageError
from nett.core.tiny import write_llama
from nett.weights import engine
from nett.weights.formats.gguf import Gguf
from nett.weights.protocol import Quantised
from support.tensors import read_tensors

LAYER = Linear("a", "m.a.weight", 3, 64)


def run(method: str, model: Path, out: Path, parameters: Any = None, **options: Any) -> dict[str, Any]:
    given = {"threads": 1, "length": 32, "samples": 16, "format": "gguf"} | options
    return engine.run(find_card(f"weights/{method}"), [str(model)], parameters or {}, out=out, **given)


def same_logits(out: Path) -> None:
    """transformers' model of the file against nett's own reading."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 60, (2, 16)))
    model = transformers.AutoModelForCausalLM.from_pretrained(out, gguf_file="model.gguf", dtype=torch.float32)
    with open_checkpoint(out, dense=True) as checkpoint, torch.no_grad():
        for got, logits in Walk(open_skeleton(checkpoint), ids).through().logits():
            assert float((logits - model(got).logits).abs().max()) < 1e-3


def kinds(out: Path) -> set[str]:
    with open_checkpoint(out) as checkpoint:
        return {info.stored for info in checkpoint.tensors.values()}


@pytest.mark.parametrize(
    ("parameters", "kind", "size"),
    [({"bits": 4}, "Q4_0", 18), ({"bits": 4, "symmetric": False}, "Q4_1", 20), ({"bits": 8}, "Q8_0", 34)],
)
def test_written_and_read_back(llama: Path, text: Path, tmp_path: Path, parameters: Any, kind: str, size: int) -> None:
    receipt = run("gptq", llama, tmp_path / "out", parameters, calibration=text)
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"model.gguf", "nett.json", "nett.html", "nett-eval.npy"}
    assert kinds(tmp_path / "out") == {kind, "F16", "F32"}
    assert receipt["figures"]["bits_a_weight"] == pytest.approx(size / 4)
    assert receipt["proof"] == "kept" and all(c["ok"] for c in engine.verify(tmp_path / "out", receipt))
    same_logits(tmp_path / "out")
    mine = transformers.AutoTokenizer.from_pretrained(llama)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    for words in ("the sun is on a road", "noon, dust 12"):
        assert theirs(words).input_ids == mine(words).input_ids


def by_hand(blocks: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    """llama.cpp's definition of a block, [rows, columns] float32."""
    rows, out = blocks.reshape(-1, {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]), []
    for row in rows:
        scale = float(row[:2].view(np.float16)[0])
        if kind == "Q8_0":
            out.append(scale * row[2:].view(np.int8).astype(np.float32))
            continue
        body = row[4:] if kind == "Q4_1" else row[2:]
        numbers = np.concatenate([body & 15, body >> 4]).astype(np.float32)
        out.append(scale * numbers + float(row[2:4].view(np.float16)[0]) if kind == "Q4_1" else scale * (numbers - 8))
    return np.stack(out)


@pytest.mark.parametrize(("bits", "symmetric", "kind"), [(4, True, "Q4_0"), (4, False, "Q4_1"), (8, True, "Q8_0")])
def test_blocks_hold_exactly_the_codes(bits: int, symmetric: bool, kind: str) -> None:
    rng = np.random.default_rng(0)
    half = 2 ** (bits - 1)
    codes = torch.from_numpy(rng.integers(-half, half, (3, 64)).astype(np.int8))
    scale = torch.from_numpy(rng.uniform(0.01, 1, (3, 2)).astype(np.float16))
    zero = None if symmetric else torch.from_numpy(rng.integers(-half, half, (3, 2)).astype(np.int8))
    answer, form = Quantised(codes, scale, zero, bits), Gguf.__new__(Gguf)
    made, said = form.tensors(LAYER, answer)
    assert said["type"] == kind
    blocks = made["m.a.weight"].numpy()
    found = by_hand(blocks, kind).reshape(3, 64)
    exact = answer.codes.numpy().astype(np.float32).reshape(3, 2, 32)
    exact -= 0 if zero is None else zero.numpy().astype(np.float32)[..., None]
    exact = (exact * scale.numpy().astype(np.float32)[..., None]).reshape(3, 64)
    near = 0 if symmetric else 16 * float(scale.max()) * 2**-11  # the lowest value is rounded to float16
    assert np.abs(found - exact).max() <= near
    assert np.array_equal(found, form.expected(answer).numpy())
    assert np.array_equal(found, form.value(LAYER, made, said).numpy())


def test_values_are_those_of_the_kernel(llama: Path, text: Path, tmp_path: Path) -> None:
    """The same run written dense in float16: every number of the GGUF file, q and k in their own order of rows."""
    run("gptq", llama, tmp_path / "gguf", {"bits": 8}, calibration=text)
    run("gptq", llama, tmp_path / "dense", {"bits": 8, "group": 32}, calibration=text, format="dense", dtype="float16")
    expected = read_tensors(tmp_path / "dense" / "model.safetensors")
    with open_checkpoint(tmp_path / "gguf") as checkpoint:
        assert set(checkpoint.tensors) == set(expected)
        for name, values in expected.items():
            if ".layers.0." in name:  # later blocks see the rounding of dense float16 in one of the two
                found = checkpoint.values(name).reshape(values.shape)
                assert np.allclose(found, values, rtol=1e-3, atol=1e-6), name


def test_pruned_models_are_float16(llama: Path, tmp_path: Path) -> None:
    run("magnitude", llama, tmp_path / "out")
    assert kinds(tmp_path / "out") == {"F16", "F32"}
    same_logits(tmp_path / "out")


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_other_architectures(name: str, tmp_path: Path) -> None:
    """Biases, and norms that llama.cpp stores with one added; no permuted rows."""
    config: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 64, "num_attention_heads": 4}
    config |= {"intermediate_size": 96, "num_key_value_heads": 2}
    made = transformers.Qwen2Config(**config) if name == "qwen2" else transformers.Gemma2Config(**config, head_dim=16)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(made)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "model")
    run("rtn", tmp_path / "model", tmp_path / "out", {"bits": 8})
    same_logits(tmp_path / "out")
    before = read_tensors(tmp_path / "model" / "model.safetensors")
    with open_checkpoint(tmp_path / "out") as checkpoint:
        for key in before:
            gap = np.abs(checkpoint.values(key).reshape(before[key].shape) - before[key]).max()
            assert gap < 0.02 * np.abs(before[key]).max(), key


def test_from_a_gguf_file_its_tokenizer_is_kept(llama: Path, tmp_path: Path) -> None:
    run("rtn", llama, tmp_path / "first", {"bits": 8})
    receipt = run("rtn", tmp_path / "first" / "model.gguf", tmp_path / "second")
    assert receipt["proof"] == "kept" and kinds(tmp_path / "second") == {"Q4_0", "F16", "F32"}
    with open_checkpoint(tmp_path / "first") as a, open_checkpoint(tmp_path / "second") as b:
        keys = {k for k in a.metadata if k.startswith("tokenizer.")}
        assert keys and {k: a.metadata[k] for k in keys} == {k: b.metadata[k] for k in keys}
    mine = transformers.AutoTokenizer.from_pretrained(llama)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "second", gguf_file="model.gguf")
    assert theirs("the sun is on a road").input_ids == mine("the sun is on a road").input_ids


def test_what_is_refused_before_any_work(llama: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for parameters, said in (
        ({"bits": 3}, "no block of 3 bits"),
        ({"bits": 8, "symmetric": False}, "no block of 8 bits with zero points"),
        ({"bits": 4, "group": 64}, "cannot be cut into groups of 64"),
        ({"bits": 4, "group": -1}, "groups of -1 do not fit"),
    ):
        with pytest.raises(Refused, match=said):
            run("rtn", llama, out, parameters)
    with pytest.raises(UsageError, match="scales are float16 in gguf"):
        run("rtn", llama, out, dtype="bfloat16")
    with pytest.raises(Refused, match="rounds activations"):
        run("int8_dynamic", llama, out)
    narrow = write_llama(tmp_path / "narrow", layers=1, hidden=48, inter=96)
    with pytest.raises(Refused, match="cannot be cut into groups of 32"):
        run("rtn", narrow, out)
    config = transformers.PhiConfig(hidden_size=64, num_hidden_layers=1, vocab_size=64, num_attention_heads=4, intermediate_size=96)  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "phi")
    with pytest.raises(Refused, match="cannot be written as GGUF"):
        run("rtn", tmp_path / "phi", out)
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    config = transformers.LlamaConfig(hidden_size=64, num_hidden_layers=1, vocab_size=64, num_attention_heads=4, intermediate_size=96, rope_parameters=scaled)  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "scaled")
    with pytest.raises(Refused, match="rotary positions are scaled"):
        run("rtn", tmp_path / "scaled", out)
    assert not out.exists() and not list(tmp_path.glob(".out*"))
