"""Quantised models as inputs of a merge: GGUF and compressed-tensors, beside dense ones of the same architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.tiny import write_llama
from support.cli import nett
from support.gguf_files import interleaved, write_llama_gguf
from support.quantised import quantised_llama
from support.tensors import read_tensors, write_tensors


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, dict[str, Any]]:
    """A dense base, a quantised fine-tune, the dense model that it stands for (as a folder, and as arrays)."""
    place = tmp_path_factory.mktemp("llamas")
    base = write_llama(place / "base", layers=1)
    stands = quantised_llama(base, place / "packed", seed=3)
    dense = write_llama(place / "dense", layers=1)
    write_tensors(dense / "model.safetensors", stands, "BF16")
    return base, place / "packed", dense, stands


def test_merged_like_the_model_it_stands_for(llamas: Any, tmp_path: Path) -> None:
    base, packed, dense, _ = llamas
    for name, tuned in (("a", packed), ("b", dense)):
        run = nett(
            "merge", "task_arithmetic", str(tuned), "--base", str(base), "--scale", "0.7", "--no-speak", "--out",
            str(tmp_path / name),
        ).succeeded()  # fmt: skip
        assert ("quantization_config" in run.err) == (name == "a")
    assert all((a == read_tensors(tmp_path / "b")[n]).all() for n, a in read_tensors(tmp_path / "a").items())
    receipt = json.loads((tmp_path / "a" / "nett.json").read_text())
    assert any("its weights are taken as the numbers they stand for" in n for n in receipt["notes"])
    nett("verify", str(tmp_path / "a"), "--rerun").succeeded()


def test_a_quantised_base_in_a_recipe_gives_a_dense_config(llamas: Any, tmp_path: Path) -> None:
    base, packed, dense, stands = llamas
    recipe = tmp_path / "recipe.yml"
    for name, ground in (("a", packed), ("b", dense)):
        recipe.write_text(
            f"merge_method: task_arithmetic\nbase_model: {ground}\n"
            f"models:\n  - model: {base}\n    parameters: {{weight: 0.5}}\ndtype: float32\n"
        )
        nett("merge", str(recipe), "--no-speak", "--out", str(tmp_path / name)).succeeded()
    made = read_tensors(tmp_path / "a")
    assert all((a == read_tensors(tmp_path / "b")[n]).all() for n, a in made.items())
    name = next(n for n in stands if n.endswith("q_proj.weight"))
    expected = stands[name] + np.float32(0.5) * (read_tensors(base)[name] - stands[name])
    assert (made[name] == expected).all()
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"
    assert (tmp_path / "a" / "tokenizer.json").is_file()


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A dense base and fine-tune in float32, and a folder for the fine-tune's GGUF files."""
    place = tmp_path_factory.mktemp("ggufs")
    base = write_llama(place / "base", layers=2, dtype="F32")
    tuned = write_llama(place / "tuned", layers=2, dtype="F32", noise_from=base)
    for kind in ("F32", "Q8_0"):
        write_llama_gguf(place / f"{kind}.gguf", tuned, kind)
    return base, tuned, place


def test_a_plain_gguf_merges_like_its_folder(ggufs: Any, tmp_path: Path) -> None:
    """Names, and the rows of q and k, which llama.cpp permutes."""
    pytest.importorskip("gguf")
    base, tuned, place = ggufs
    for name, one in (("a", place / "F32.gguf"), ("b", tuned)):
        words = (str(one), str(base), "--no-speak", "--out", str(tmp_path / name))
        nett("merge", "linear", *words).succeeded()
    made, expected = read_tensors(tmp_path / "a"), read_tensors(tmp_path / "b")
    assert made.keys() == expected.keys() and all((made[n] == expected[n]).all() for n in expected)


def dequantised(values: Any, heads: int) -> Any:
    """What Q8_0 keeps of a matrix (blocks of 32: an F16 scale of largest / 127), permuted rows put back."""
    rows = interleaved(values, heads) if heads else values
    blocks = rows.reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    with np.errstate(all="ignore"):
        codes = np.where(scale > 0, np.rint(blocks / scale), 0)
    kept = (codes * scale.astype(np.float16).astype(np.float32)).reshape(rows.shape).astype(np.float32)
    if not heads:
        return kept
    return kept.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def test_a_quantised_gguf_is_dequantised_as_base_and_in_a_recipe(ggufs: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    _, tuned, place = ggufs
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"merge_method: task_arithmetic\nbase_model: {place / 'Q8_0.gguf'}\n"
        f"models:\n  - model: {tuned}\n    parameters: {{weight: 0.5}}\n"
    )
    said = nett("merge", str(recipe), "--no-speak", "--out", str(tmp_path / "out")).succeeded()
    assert "is quantised (GGUF Q8_0)" in said.err
    made, given = read_tensors(tmp_path / "out"), read_tensors(tuned)
    for name, heads in (("self_attn.q_proj", 4), ("self_attn.k_proj", 2), ("mlp.down_proj", 0)):
        one = given[f"model.layers.1.{name}.weight"]
        start = dequantised(one, heads)
        np.testing.assert_allclose(
            made[f"model.layers.1.{name}.weight"], start + np.float32(0.5) * (one - start), rtol=0, atol=2e-7
        )
        assert np.abs(start - one).max() > 1e-4  # the quantisation shows, so that the test can fail
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32" and config["architectures"] == ["LlamaForCausalLM"]
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_whole_networks_are_dequantised_too(llamas: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    base, packed, dense, _ = llamas
    for name, tuned in (("a", packed), ("b", dense)):
        words = [str(base), str(tuned), "--no-speak", "--out", str(tmp_path / name)]
        nett("merge", "weight_matching", *words).succeeded()
    assert all((a == read_tensors(tmp_path / "b")[n]).all() for n, a in read_tensors(tmp_path / "a").items())
    receipt = json.loads((tmp_path / "a" / "nett.json").read_text())
    assert any("its weights are taken as the numbers they stand for" in n for n in receipt["notes"])
