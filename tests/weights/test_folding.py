"""Where scales can be folded: found on models of several families, none of which the code knows; and what is not so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from nett.core.blocks import Linear, Walk, open_skeleton
from nett.core.cards import find_card
from nett.core.checkpoint import open_checkpoint
from nett.weights import engine
from nett.weights.folding import Fold, folds, ordered
from nett.weights.protocol import Scaled
from nett.weights.watching import sharing
from support.tensors import read_tensors

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "num_attention_heads": 4}
GATED: dict[str, Any] = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2}
HEADS = [0, 1, 2, 3, 4, 5, 6, 7] * 2 + [8, 9, 10, 11, 12, 13, 14, 15] * 2  # two heads of queries share one of values
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GATED),
    "qwen2": lambda: transformers.Qwen2Config(**GATED),  # biases of q, k and v
    "gemma": lambda: transformers.GemmaConfig(**GATED, head_dim=8),  # norms that store their gain minus one
    "opt": lambda: transformers.OPTConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=32,
        pad_token_id=1, eos_token_id=2,
    ),  # norms with a bias; a ReLU between the two layers of the MLP
    "phi": lambda: transformers.PhiConfig(**SMALL, intermediate_size=48),  # attention and MLP side by side; GELU
}  # fmt: skip


def written(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
    for path, parameter in model.named_parameters():
        size = 0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
        around = 1.0 if parameter.dim() == 1 and path.endswith("weight") and name != "gemma" else 0.0
        parameter.data = torch.randn_like(parameter) * size + around
    model.save_pretrained(folder)
    return folder


def found(folder: Path, only: Any = lambda layer: True) -> list[dict[str, Fold]]:
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 60, (2, 16)))
    with open_checkpoint(folder) as checkpoint:
        skeleton = open_skeleton(checkpoint)
        walk, known, every = Walk(skeleton, ids), dict[str, Fold](), []
        for number in range(2):
            with skeleton.block(number) as module:
                layers = [layer for layer in skeleton.linears(number) if only(layer)]
                known = folds(walk, module, sharing(walk, module, layers), layers, known)
            every.append(known)
        return every


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma", "opt", "phi"])
def test_found_without_knowing_the_family(name: str, tmp_path: Path) -> None:
    first, second = found(written(name, tmp_path / "m"))
    places = {k: (f.names[0].removesuffix(".weight"), f.shift) for k, f in first.items()}
    attention = {"opt": "self_attn_layer_norm"}.get(name, "input_layernorm")
    norm = 1.0 if name == "gemma" else 0.0
    out = {"opt": "self_attn.out_proj", "phi": "self_attn.dense"}.get(name, "self_attn.o_proj")
    expected = {"self_attn.q_proj": (attention, norm), out: ("self_attn.v_proj", 0.0)}
    if name == "opt":
        expected |= {"fc1": ("final_layer_norm", 0.0), "fc2": ("fc1", 0.0)}
    elif name != "phi":  # whose MLP reads the norm of the attention, and has a GELU between its layers
        expected |= {"mlp.gate_proj": ("post_attention_layernorm", norm), "mlp.down_proj": ("mlp.up_proj", 0.0)}
    assert places == expected
    assert {k: (f.names, f.shift) for k, f in second.items()} == {k: (f.names, f.shift) for k, f in first.items()}
    grouped = name not in ("opt", "phi")
    assert first[out].source.tolist() == (HEADS if grouped else list(range(32)))
    biased = {k: f.names for k, f in first.items() if len(f.names) == 2}
    assert (name in ("qwen2", "opt", "phi")) == bool(biased)


def test_not_where_another_layer_reads_the_same(tmp_path: Path) -> None:
    """Without k among those at work, the norm before q and v may not be changed; without v, nothing takes up o's."""
    folder = written("llama", tmp_path / "m")
    without_k, _ = found(folder, lambda layer: not layer.name.endswith("k_proj"))
    assert set(without_k) == {"self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"}
    without_v, _ = found(folder, lambda layer: not layer.name.endswith("v_proj"))
    assert set(without_v) == {"mlp.gate_proj", "mlp.down_proj"}


def test_readers_go_before_what_their_scale_goes_into() -> None:
    def one(name: str) -> list[Linear]:
        return [Linear(name, name, 4, 4)]

    source = torch.arange(4)
    places = {"c": Fold(("b.weight",), 0.0, source), "b": Fold(("a.weight",), 0.0, source)}
    order = [g[0].name for g in ordered([one("a"), one("b"), one("c")], places)]
    assert order == ["c", "b", "a"]


def test_folded_scales_leave_the_model_as_it_was(llama: Path, text: Path, tmp_path: Path) -> None:
    """A kernel that scales by random numbers and rounds nothing: every written tensor by hand, and the same logits."""
    card = find_card("weights/awq")
    seen: list[torch.Tensor] = []

    def kernel(weights: list[Any], gram: Any, magnitudes: Any, source: Any, **_: Any) -> Scaled:
        rng = torch.Generator().manual_seed(len(seen))
        scale = torch.empty(int(source.max()) + 1).uniform_(0.5, 2, generator=rng)[source]
        seen.append(scale)
        return Scaled([(w.float() * scale).to(w.dtype) for w in weights], scale)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(card), "kernel", lambda self: kernel)
        receipt = engine.run(
            card, [str(llama)], {"group": 32}, out=tmp_path / "out", calibration=text, length=32, samples=16, threads=1,
            dtype="float32",
        )  # fmt: skip
    assert len(seen) == 12 and receipt["figures"]["judged"]["kl"]["mean"] < 1e-9
    assert any("21 of 21 layers are scaled" in note for note in receipt["notes"])
    assert max(t["error"] for t in receipt["tensors"]) < 1e-12
    before, after = read_tensors(llama / "model.safetensors"), read_tensors(tmp_path / "out" / "model.safetensors")
    o, down, qkv, up = (s.numpy() for s in seen[:4])
    name = "model.layers.0."
    v = before[f"{name}self_attn.v_proj.weight"].astype(np.float64) * qkv
    rows = o.reshape(4, 16)[[0, 2]].reshape(-1)  # heads 0 and 1 read the first head of values
    assert np.allclose(after[f"{name}self_attn.v_proj.weight"], v / rows[:, None], rtol=1e-6)
    gained = before[f"{name}input_layernorm.weight"] / qkv
    assert np.allclose(after[f"{name}input_layernorm.weight"], gained, rtol=1e-6)
    assert np.allclose(
        after[f"{name}mlp.up_proj.weight"], before[f"{name}mlp.up_proj.weight"] * up / down[:, None], rtol=1e-6
    )
    assert np.array_equal(after["model.norm.weight"], before["model.norm.weight"])


def test_layers_of_a_group_with_other_parameters(llama: Path, text: Path, tmp_path: Path) -> None:
    """q with 8 bits, k and v with 4: each gets its own, and the norm before them is left alone."""
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"*.q_proj": {"bits": 8}}))
    card = find_card("weights/awq")
    receipt = engine.run(
        card,
        [str(llama)],
        {},
        out=tmp_path / "out",
        calibration=text,
        length=32,
        samples=16,
        threads=1,
        per_layer=rules,
    )
    bits = {t["name"].rpartition(".")[2]: round(t["bits"]) for t in receipt["tensors"]}
    assert bits["q_proj"] > 7 and bits["k_proj"] < 6 and bits["v_proj"] < 6
    assert any("for 9 there is no place" in note for note in receipt["notes"])
    before, after = (read_tensors(f / "model.safetensors") for f in (llama, tmp_path / "out"))
    assert np.array_equal(
        before["model.layers.0.input_layernorm.weight"], after["model.layers.0.input_layernorm.weight"]
    )


def test_quantised_scaled_answers_are_read_back(llama: Path, text: Path, tmp_path: Path) -> None:
    """SmoothQuant: weights and inputs of 8 bits; transformers, which rounds the inputs itself, gives our logits."""
    pytest.importorskip("compressed_tensors")
    card = find_card("weights/smoothquant")
    receipt = engine.run(card, [str(llama)], {}, out=tmp_path / "out", calibration=text, length=32, samples=16, threads=1, dtype="float32")  # fmt: skip
    assert 0 < receipt["figures"]["judged"]["kl"]["mean"] < 0.01
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert said["format"] == "int-quantized" and said["config_groups"]["group_0"]["input_activations"]["dynamic"]
    ids = torch.from_numpy(np.random.default_rng(1).integers(3, 60, (2, 16)))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with open_checkpoint(tmp_path / "out", dense=True) as checkpoint, torch.no_grad():
        assert set(checkpoint.rounded.values()) == {8} and len(checkpoint.rounded) == 21  # type: ignore[attr-defined]
        for got, logits in Walk(open_skeleton(checkpoint), ids).through().logits():
            assert torch.allclose(logits, model(got).logits, atol=1e-5)
