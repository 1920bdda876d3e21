"""Slices and modules: which layers and which outer tensors the output gets, with which values, and its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.tiny import write_llama
from support.cli import nett
from support.recipes import NAMES, Model, at, write_family, write_recipe
from support.tensors import read_tensors, write_tensors

ROLES = ("mlp.down_proj", "self_attn.q_proj", "input_layernorm")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
    monkeypatch.chdir(tmp_path)
    return write_family(tmp_path)


def run(recipe: Any, *words: str) -> Model:
    file = write_recipe(Path("recipe.yml"), recipe)
    nett("merge", str(file), "--out", "out", "--no-speak", "--overwrite", *words).succeeded()
    return read_tensors(Path("out"))


def source(name: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    return {"model": name, "layer_range": [start, stop]} | ({"parameters": parameters} if parameters else {})


def layer(role: str, number: int) -> str:
    return f"model.layers.{number}.{role}.weight"


def test_frankenmerge(models: dict[str, Model]) -> None:
    """Layers in the order of the slices, each with its own scale; embeddings of the first slice, norm and head of
    the last one, at t = 0."""
    found = run({
        "merge_method": "passthrough",
        "slices": [
            {"sources": [source("a", 0, 3)]},
            {"sources": [source("b", 1, 4, scale=[{"filter": "q_proj", "value": [0, 2]}, {"value": 3}])]},
            {"sources": [source("c", 3, 4)], "parameters": {"scale": [{"filter": "norm", "value": [5, 7]}, {"value": 1}]}},
        ],
    })  # fmt: skip
    taken = [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3), ("c", 3)]
    expected = {"model.embed_tokens.weight": models["a"]["model.embed_tokens.weight"]}
    expected["lm_head.weight"] = models["c"]["lm_head.weight"]
    expected["model.norm.weight"] = 5 * models["c"]["model.norm.weight"]  # t = 0: the first of the gradient
    for number, (model, old) in enumerate(taken):
        for role in ROLES:
            factor: float = 1
            if model == "b":
                factor = {1: 0, 2: 1, 3: 2}[old] if "q_proj" in role else 3
            if model == "c" and "norm" in role:
                factor = 7  # a slice of one layer: t = 1
            expected[layer(role, number)] = np.float32(factor) * models[model][layer(role, old)]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_filters_see_the_inputs_names_for_models_and_the_outputs_for_all(models: dict[str, Model]) -> None:
    """``scale`` is set for a model, ``t`` for all: layer 2 of the input is layer 0 of the output."""
    found = run({
        "merge_method": "passthrough", "slices": [{"sources": [source("a", 2, 4)]}],
        "parameters": {"scale": [{"filter": "layers.2.", "value": 2}, {"value": 1}]},
    })  # fmt: skip
    np.testing.assert_array_equal(found[layer(ROLES[0], 0)], 2 * models["a"][layer(ROLES[0], 2)])
    np.testing.assert_array_equal(found[layer(ROLES[0], 1)], models["a"][layer(ROLES[0], 3)])
    recipe = {
        "merge_method": "slerp", "base_model": "base", "slices": [{"sources": [source("base", 2, 4), source("a", 2, 4)]}],
        "parameters": {"t": [{"filter": "layers.1.", "value": 1}, {"value": 0}]},
    }  # fmt: skip
    found = run(recipe)
    np.testing.assert_allclose(found[layer(ROLES[0], 1)], models["a"][layer(ROLES[0], 3)], rtol=1e-6)
    np.testing.assert_allclose(found[layer(ROLES[0], 0)], models["base"][layer(ROLES[0], 2)], rtol=1e-6)
    write_recipe(
        Path("recipe.yml"), recipe | {"parameters": {"t": [{"filter": "layers.3.", "value": 1}, {"value": 0}]}}
    )
    nett("merge", "recipe.yml", "--out", "o2").failed(2, "the filter 'layers.3.' matches no tensor")


def test_values_come_from_the_nearest_scope_with_t_within_the_slice(models: dict[str, Model]) -> None:
    """Source, slice, recipe, in this order; a base of its own for each slice; its place among the sources is free."""
    recipe = {
        "merge_method": "task_arithmetic", "base_model": "base",
        "slices": [
            {"sources": [source("a", 0, 3, weight=[0.2, 0.8, 0.4]), source("base", 1, 4)], "parameters": {"weight": 9}},
            {"sources": [source("a", 0, 2), source("b", 2, 4)], "base_model": "a", "parameters": {"lambda": [0.5, 1.5]}},
        ],
        "parameters": {"weight": [1, 3], "lambda": 0.9},
    }  # fmt: skip
    found = run(recipe)
    for role in ROLES:
        for step in range(3):
            ground, tuned = models["base"][layer(role, 1 + step)], models["a"][layer(role, step)]
            wanted = ground + 0.9 * at([0.2, 0.8, 0.4], step / 2) * (tuned - ground)
            np.testing.assert_allclose(found[layer(role, step)], wanted, rtol=2e-6, atol=1e-6)
        for step in range(2):
            ground, tuned = models["a"][layer(role, step)], models["b"][layer(role, 2 + step)]
            wanted = ground + at([0.5, 1.5], step) * at([1, 3], step) * (tuned - ground)
            np.testing.assert_allclose(found[layer(role, 3 + step)], wanted, rtol=2e-6, atol=1e-6)
    name = "lm_head.weight"  # of the last slice, t = 0
    wanted = models["a"][name] + 0.5 * 1 * (models["b"][name] - models["a"][name])
    np.testing.assert_allclose(found[name], wanted, rtol=2e-6, atol=1e-6)
    rows = json.loads(nett("merge", "explain", "recipe.yml", "--json", "--tensor", "*layers.[13].mlp*").succeeded().out)
    told = {(r["tensor"], r["model"], r["parameter"]): r["value"] for r in rows}
    assert told[layer(ROLES[0], 1), "a", "weight"] == pytest.approx(0.8)
    assert told[layer(ROLES[0], 3), "b", "weight"] == 1 and told[layer(ROLES[0], 3), None, "lambda"] == 0.5


def test_config_and_layer_lists_follow_the_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of layers, one entry a layer, and lists of layers' numbers; transformers loads it."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_llama(name, layers=4, seed=seed, dtype="F32")
        config = json.loads(Path(name, "config.json").read_text())
        config |= {
            "layer_types": [f"{name}{i}" for i in range(4)], "no_rope_layers": [1, 0, 1, 0], "mlp_only_layers": [1, 3],
            "eos_token_id": [1, 2], "hybrid_override_pattern": "M*E-",
        }  # fmt: skip
        Path(name, "config.json").write_text(json.dumps(config))
    run({"merge_method": "passthrough", "slices": [{"sources": [source("a", 0, 3)]}, {"sources": [source("b", 1, 4)]}]})
    made = json.loads(Path("out/config.json").read_text())
    assert made["num_hidden_layers"] == 6 and made["layer_types"] == ["a0", "a1", "a2", "b1", "b2", "b3"]
    assert made["no_rope_layers"] == [1, 0, 1, 0, 1, 0] and made["mlp_only_layers"] == [1, 3, 5]
    assert made["eos_token_id"] == [1, 2] and made["hybrid_override_pattern"] == "M*E*E-"
    receipt = json.loads(Path("out/nett.json").read_text())
    assert receipt["proof"] == "kept" and any(c["name"] == "config num_hidden_layers" for c in receipt["checks"])
    nett("verify", "out", "--rerun").succeeded()


def test_transformers_loads_a_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_llama(name, layers=3, seed=seed, dtype="F32")
    run({"merge_method": "passthrough", "slices": [{"sources": [source("a", 0, 2)]}, {"sources": [source("b", 0, 3)]}]})
    model = transformers.AutoModelForCausalLM.from_pretrained("out").eval()
    a, b = (transformers.AutoModelForCausalLM.from_pretrained(n).eval() for n in "ab")
    ids = torch.arange(5)[None] + 3
    with torch.no_grad():
        a.model.layers = torch.nn.ModuleList([*a.model.layers[:2], *b.model.layers])
        a.model.norm, a.model.config.num_hidden_layers = b.model.norm, 5
        for number, one in enumerate(a.model.layers):
            one.self_attn.layer_idx = number
        assert torch.allclose(model(ids).logits, a(ids, use_cache=False).logits, atol=1e-5)


def both(folder: Path, name: str, seed: int) -> Model:
    rng = np.random.default_rng(seed)
    shapes = {"shared.weight": (6, 2), "lm_head.weight": (6, 2)}
    for stack, count in (("encoder", 2), ("decoder", 3)):
        shapes |= {f"{stack}.block.{i}.layer.0.w": (2, 2) for i in range(count)} | {
            f"{stack}.final_layer_norm.weight": (2,)
        }
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    write_tensors(folder / name / "model.safetensors", tensors)
    config = {"model_type": "t5", "num_layers": 2, "num_decoder_layers": 3, "vocab_size": 6}
    (folder / name / "config.json").write_text(json.dumps(config))
    return tensors


def test_modules_each_in_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = both(tmp_path, "x", 1), both(tmp_path, "y", 2)
    found = run({
        "merge_method": "linear",
        "modules": {
            "encoder": {"slices": [{"sources": [source("x", 0, 2)]}, {"sources": [source("y", 1, 2)]}]},
            "decoder": {"models": [{"model": "x"}, {"model": "y", "parameters": {"weight": [1, 3]}}]},
            "shared": {"models": [{"model": "y"}]},
        },
        "parameters": {"weight": 1},
    })  # fmt: skip
    assert len(found) == 10
    for number, (model, old) in enumerate([(x, 0), (x, 1), (y, 1)]):
        np.testing.assert_array_equal(
            found[f"encoder.block.{number}.layer.0.w"], model[f"encoder.block.{old}.layer.0.w"]
        )
    np.testing.assert_array_equal(found["encoder.final_layer_norm.weight"], y["encoder.final_layer_norm.weight"])
    for i, weight in enumerate((1, 2, 3)):
        name = f"decoder.block.{i}.layer.0.w"
        np.testing.assert_allclose(found[name], (x[name] + weight * y[name]) / (1 + weight), rtol=1e-5, atol=1e-6)
    for name in ("shared.weight", "lm_head.weight"):
        np.testing.assert_array_equal(found[name], y[name])
    made = json.loads(Path("out/config.json").read_text())
    assert made["num_layers"] == 3 and made["num_decoder_layers"] == 3


def test_a_module_called_default_is_all_of_a_model(models: dict[str, Model]) -> None:
    listed = {"models": [{"model": "a"}, {"model": "b"}]}
    plain = run({"merge_method": "linear", **listed, "parameters": {"weight": [1, 2]}})
    for name in ("default", "text_decoder"):
        module = run(
            {
                "merge_method": "linear",
                "modules": {name: listed | {"parameters": {"weight": [1, 2]}}},
                "parameters": {"weight": 5},
            }
        )
        assert all(np.array_equal(plain[n], module[n]) for n in NAMES)


def test_the_deeper_name_claims_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vision models keep their projector inside the vision part, or beside it."""
    monkeypatch.chdir(tmp_path)
    names = [
        "model.layers.0.w",
        "lm_head.weight",
        "visual.blocks.0.w",
        "visual.merger.mlp.0.w",
        "visual.merger.ln_q.weight",
    ]
    for seed, name in enumerate("pq"):
        rng = np.random.default_rng(seed)
        write_tensors(Path(name, "model.safetensors"), {n: rng.standard_normal(2).astype(np.float32) for n in names})
    found = run({
        "merge_method": "passthrough",
        "modules": {m: {"models": [{"model": o}]} for m, o in (("vision_tower", "p"), ("multi_modal_projector", "q"), ("text_decoder", "p"))},
    })  # fmt: skip
    p, q = read_tensors(Path("p")), read_tensors(Path("q"))
    for name in names:
        np.testing.assert_array_equal(found[name], (q if "merger" in name else p)[name])


@pytest.mark.parametrize(("first", "last"), [("tied", "apart"), ("apart", "tied")])
def test_tied_and_untied_output_layers_in_one_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, last: str
) -> None:
    """The head is that of the last slice's model, its embeddings where it ties them; the config says that it is apart."""
    monkeypatch.chdir(tmp_path)
    for name in ("tied", "apart"):
        write_llama(Path(name), tied=name == "tied", dtype="F32", seed=len(name))
    found = run({
        "merge_method": "passthrough",
        "slices": [{"sources": [source(first, 0, 2)]}, {"sources": [source(last, 1, 2)]}],
    })  # fmt: skip
    head = "model.embed_tokens.weight" if last == "tied" else "lm_head.weight"
    np.testing.assert_array_equal(found["lm_head.weight"], read_tensors(Path(last))[head])
    np.testing.assert_array_equal(
        found["model.embed_tokens.weight"], read_tensors(Path(first))["model.embed_tokens.weight"]
    )
    assert json.loads(Path("out/config.json").read_text())["tie_word_embeddings"] is False
