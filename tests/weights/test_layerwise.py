"""Block by block: what the kernels see is what the layers see, what is written is what others load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from nett.core.blocks import Walk, open_skeleton
from nett.core.cards import find_card
from nett.core.checkpoint import open_checkpoint
from nett.core.errors import Refused, UsageError
from nett.core.tiny import write_llama
from nett.weights import engine
from nett.weights.watching import moments_of, sharing
from support.tensors import read_tensors, write_tensors


def run(method: str, model: Path, out: Path, parameters: Any = None, **options: Any) -> dict[str, Any]:
    given = {"threads": 1, "length": 32, "samples": 24} | options
    return engine.run(find_card(f"weights/{method}"), [str(model)], parameters or {}, out=out, **given)


def ids(count: int = 5, length: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(3, 60, (count, length)))


def test_a_walk_gives_the_model_s_own_logits(llama: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with open_checkpoint(llama) as checkpoint:
        skeleton = open_skeleton(checkpoint)
        for disk in (False, True):
            for got, logits in Walk(skeleton, ids(), disk=disk).through().logits():
                with torch.no_grad():
                    assert torch.allclose(logits, model(got).logits, atol=1e-5)
        assert all(p.device.type == "meta" for p in skeleton.model.parameters()), "weights were not let go of"


def test_moments_are_those_of_the_layers_inputs(llama: Path) -> None:
    """Of the second block, against hooks on the whole model and NumPy."""
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    seen: dict[str, Any] = {}
    for name, module in model.model.layers[1].named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, x, name=name: seen.__setitem__(name, x[0].reshape(-1, x[0].shape[-1]))
            )
    with torch.no_grad():
        model(ids())
    wanted = ("gram", "squares", "means", "magnitudes", "largest")
    with open_checkpoint(llama) as checkpoint:
        skeleton = open_skeleton(checkpoint)
        walk = Walk(skeleton, ids())
        with skeleton.block(0) as block:
            walk.run(block)
        with skeleton.block(1) as block:
            groups = sharing(walk, block, skeleton.linears(1))
            found = moments_of(walk, block, groups, wanted)
    assert [[layer.name.rpartition(".")[2] for layer in g] for g in groups] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    assert found.keys() == seen.keys()
    for name, inputs in seen.items():
        x = inputs.double().numpy()
        expected = {
            "gram": x.T @ x / len(x),
            "squares": (x**2).mean(0),
            "means": x.mean(0),
            "magnitudes": np.abs(x).mean(0),
            "largest": np.abs(x).max(0),
        }
        for moment in wanted:
            assert np.allclose(found[name][moment].numpy(), expected[moment], rtol=1e-4, atol=1e-5), (name, moment)


def test_later_blocks_see_what_earlier_ones_became(llama: Path, text: Path, tmp_path: Path) -> None:
    """The last block's layers, worked on by hand from a model whose first blocks are those of the result."""
    run("gptq", llama, tmp_path / "out", {"bits": 2}, calibration=text, format="dense")
    before = read_tensors(tmp_path / "out" / "model.safetensors")
    mixed = read_tensors(llama / "model.safetensors")
    mixed |= {n: t for n, t in before.items() if n.startswith(("model.layers.0.", "model.layers.1."))}
    patched = tmp_path / "mixed"
    patched.mkdir()
    for file in llama.iterdir():
        if file.suffix == ".json":
            (patched / file.name).write_bytes(file.read_bytes())
    write_tensors(patched / "model.safetensors", mixed, "BF16")
    skipped = ["model.layers.0.*", "model.layers.1.*"]
    run("gptq", patched, tmp_path / "last", {"bits": 2}, calibration=text, format="dense", skip=skipped)
    after = read_tensors(tmp_path / "last" / "model.safetensors")
    for name in after:
        assert np.array_equal(after[name], before[name]), name


def test_config_names_what_is_not_quantised(llama: Path, tmp_path: Path) -> None:
    run("rtn", llama, tmp_path / "out", skip=["*.down_proj", "*layers.0.*"])
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert said["format"] == "pack-quantized" and "sparsity_config" not in said
    expected = {"lm_head", *(f"model.layers.{i}.mlp.down_proj" for i in range(3))}
    expected |= {n for n in said["ignore"] if n.startswith("model.layers.0.")}
    assert set(said["ignore"]) == expected and len(expected) == 10
    assert said["config_groups"]["group_0"]["weights"]["strategy"] == "channel"


def test_layers_with_parameters_of_their_own(llama: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"*.down_proj": {"bits": 8}, "*.layers.0.*_proj": {"bits": 8, "symmetric": True}}))
    receipt = run("rtn", llama, tmp_path / "out", {"bits": 4}, per_layer=rules)
    bits = {t["name"]: round(t["bits"]) for t in receipt["tensors"]}
    assert {n: b for n, b in bits.items() if b > 6}.keys() == {n for n in bits if n.endswith("down_proj") or ".0." in n}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with open_checkpoint(tmp_path / "out", dense=True) as checkpoint, torch.no_grad():
        for got, logits in Walk(open_skeleton(checkpoint), ids()).through().logits():
            assert torch.allclose(logits, model(got).logits.float(), atol=0.05 * float(logits.abs().max()))
    rules.write_text(json.dumps({"*.downproj": {"bits": 8}}))
    with pytest.raises(UsageError, match="matches no layer"):
        run("rtn", llama, tmp_path / "again", per_layer=rules)


def test_a_dry_run_tells_and_does_nothing(llama: Path, text: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    told = run("gptq", llama, tmp_path / "out", calibration=text, dry_run=True)
    assert sorted(tmp_path.iterdir()) == before
    assert told["plan"]["layers"] == 21 and told["plan"]["peak_memory_bytes"] > 0 and told["plan"]["seconds"] > 0
    receipt = run("gptq", llama, tmp_path / "out", calibration=text)
    written = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert written == pytest.approx(told["plan"]["bytes_written"], rel=0.35), "headers weigh on a model of kilobytes"
    assert receipt["calibration"]["windows"] == 21  # of 24, an eighth held out


def test_what_is_refused_before_any_work(llama: Path, text: Path, other: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="--calibration"):
        run("gptq", llama, out)
    with pytest.raises(Refused, match="3 of 21 layers cannot be cut into groups of 64: 3 of 96 columns"):
        run("rtn", llama, out, {"group": 64})
    with pytest.raises(Refused, match="is the calibration text itself"):
        run("gptq", llama, out, calibration=text, eval=text)
    part = tmp_path / "part.txt"
    part.write_text(text.read_text()[:4000])
    with pytest.raises(Refused, match="of it stands in the calibration text"):
        run("gptq", llama, out, calibration=text, eval=part, samples=1000)
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(Refused, match="holds no text"):
        run("gptq", llama, out, calibration=empty)
    empty.write_text("sun")
    with pytest.raises(Refused, match="not one window of 32"):
        run("gptq", llama, out, calibration=empty)
    with pytest.raises(UsageError, match="matches no tensor"):
        run("rtn", llama, out, skip="*.gate")
    with pytest.raises(UsageError, match="leaves no layer"):
        run("rtn", llama, out, skip="*")
    with pytest.raises(UsageError, match="cannot be used"):
        run("rtn", llama, out, device="cuda:77")
    with pytest.raises(UsageError, match="unknown format"):
        run("rtn", llama, out, format="gptq")
    assert not out.exists() and not list(tmp_path.glob(".out*"))


def test_models_that_are_none(llama: Path, tmp_path: Path) -> None:
    strange = write_llama(tmp_path / "strange", layers=2)
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"model_type": "no_such_model"}))
    with pytest.raises(Refused, match="no language model that transformers"):
        run("rtn", strange, tmp_path / "out")
    (strange / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(Refused, match=r"has no tensor 'model.layers.2\."):
        run("rtn", strange, tmp_path / "out")
    (strange / "config.json").write_text(json.dumps(config | {"intermediate_size": 65}))
    with pytest.raises(Refused, match="its config says"):
        run("rtn", strange, tmp_path / "out")


def test_not_a_number_in_a_weight(text: Path, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model", layers=2, dtype="F32")
    tensors = read_tensors(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    write_tensors(model / "model.safetensors", tensors, "F32")
    for method, more in (("rtn", {}), ("gptq", {"calibration": text}), ("magnitude", {})):
        with pytest.raises(Refused, match=r"layers.1.mlp.up_proj.weight.*1 NaN or infinite"):
            run(method, model, tmp_path / "out", **more)
        assert not (tmp_path / "out").exists()


def test_vocabularies_that_do_not_fit(text: Path, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "small", layers=1, vocab=24)
    big = write_llama(tmp_path / "big", layers=1, vocab=64)
    (model / "tokenizer.json").write_bytes((big / "tokenizer.json").read_bytes())
    with pytest.raises(Refused, match="the model knows 24"):
        run("gptq", model, tmp_path / "out", calibration=text)


def test_other_families_and_untied_heads(text: Path, tmp_path: Path) -> None:
    """GPT-NeoX (parallel blocks, fused queries, biases) and a Qwen2 with biases and a head of its own."""
    makers = {
        "neox": transformers.GPTNeoXConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=64,
            max_position_embeddings=64,
        ),
        "qwen": transformers.Qwen2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
            vocab_size=64, max_position_embeddings=64, tie_word_embeddings=False,
        ),
    }  # fmt: skip
    gpt2 = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64)
    transformers.AutoModelForCausalLM.from_config(gpt2).save_pretrained(tmp_path / "gpt2")
    with open_checkpoint(tmp_path / "gpt2") as checkpoint:  # gives its blocks what they need by position
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2", dtype=torch.float32)
        for got, logits in Walk(open_skeleton(checkpoint), ids()).through().logits():
            with torch.no_grad():
                assert torch.allclose(logits, model(got).logits, atol=1e-4)
    with pytest.raises(Refused, match="has no linear layers in its blocks"):
        run("rtn", tmp_path / "gpt2", tmp_path / "none")
    tokens = write_llama(tmp_path / "tokens", vocab=64)
    for name, config in makers.items():
        torch.manual_seed(0)
        folder = tmp_path / name
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).write_bytes((tokens / file).read_bytes())
        receipt = run("gptq", folder, tmp_path / f"{name}-out", {"bits": 8}, calibration=text)
        assert receipt["figures"]["judged"]["kl"]["mean"] < 1e-3
        assert receipt["figures"]["layers"] == {"neox": 8, "qwen": 14}[name]
