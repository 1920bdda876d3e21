"""Recipes run with mergekit's meaning: golden runs against plain NumPy, lookup, bases, types, paths, the receipt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

import nett as package
from nett.core.checkpoint import open_checkpoint
from support.cli import nett
from support.merging import elect, trim_exact
from support.recipes import NAMES, Model, resolved, write_family, write_recipe
from support.tensors import Array, header_of, read_tensors, rounded, write_tensors

GRADIENT = [0.2, 1.0, 0.4]
FILTERED = [{"filter": "self_attn", "value": [1, 0.5]}, {"filter": "mlp", "value": "3e-1"}, {"value": 0.7}]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
    """The models, in the working folder: recipes' paths are relative to it."""
    monkeypatch.chdir(tmp_path)
    return write_family(tmp_path)


def run(recipe: Any, *words: str) -> Model:
    file = write_recipe(Path("recipe.yml"), recipe)
    nett("merge", str(file), "--out", "out", "--no-speak", "--overwrite", *words).succeeded()
    return read_tensors(Path("out"))


def scopes(recipe: Any, model: str) -> list[Any]:
    own = next((m.get("parameters") for m in recipe["models"] if m["model"] == model), None)
    return [own, recipe.get("parameters")]


def expected(
    recipe: Any, models: dict[str, Model], kernel: Callable[[dict[str, Array], dict[str, Any], dict[str, Any]], Array]
) -> Model:
    """Tensor by tensor: ``kernel(arrays, shared, each)`` with the values that the tests' own rules resolve."""
    made = {}
    order = [m["model"] for m in recipe["models"]]
    if recipe.get("base_model") and recipe["base_model"] not in order:
        order.append(recipe["base_model"])
    for tensor in NAMES:
        arrays = {m: models[m][tensor] for m in order}
        shared = {n: resolved(n, tensor, [recipe.get("parameters")], d) for n, d in SHARED.items()}
        each = {n: {m: resolved(n, tensor, scopes(recipe, m), d) for m in order} for n, d in EACH.items()}
        made[tensor] = kernel(arrays, shared, each).reshape(NAMES[tensor])
    return made


SHARED: dict[str, Any] = {"normalize": None, "lambda": 1.0, "t": None}
EACH: dict[str, Any] = {"weight": None, "density": 1.0, "scale": 1.0}


def close(found: Model, wanted: Model) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=3e-6, atol=3e-7, err_msg=name)


def test_linear(models: dict[str, Model]) -> None:
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": "a", "parameters": {"weight": GRADIENT}},
            {"model": "b", "parameters": {"weight": FILTERED}},
            {"model": "c"},
        ],
        "parameters": {"weight": 0.25, "normalize": [True, False, True]},
    }

    def kernel(arrays: dict[str, Array], shared: dict[str, Any], each: dict[str, Any]) -> Array:
        weights = each["weight"]
        total = sum(np.float64(weights[m]) * arrays[m] for m in arrays)
        return np.asarray(total / sum(weights.values()) if shared["normalize"] else total)

    close(run(recipe), expected(recipe, models, kernel))


def test_slerp(models: dict[str, Model]) -> None:
    recipe = {
        "merge_method": "slerp", "base_model": "base", "models": [{"model": "base"}, {"model": "a"}],
        "parameters": {"t": [{"filter": "self_attn", "value": [0, 0.5, 0.3, 1]}, {"filter": "mlp", "value": [1, 0.25]}, {"value": 0.4}]},
    }  # fmt: skip

    def kernel(arrays: dict[str, Array], shared: dict[str, Any], each: dict[str, Any]) -> Array:
        a, b, t = arrays["base"].astype(np.float64).ravel(), arrays["a"].astype(np.float64).ravel(), shared["t"]
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        if abs(cosine) > 0.9995:
            return np.asarray((1 - t) * a + t * b)
        angle = np.arccos(cosine)
        return np.asarray((np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle))

    close(run(recipe), expected(recipe, models, kernel))


def test_ties_per_tensor_with_the_weights_in_the_election(models: dict[str, Model]) -> None:
    recipe = {
        "merge_method": "ties", "base_model": "base",
        "models": [
            {"model": "a", "parameters": {"weight": GRADIENT, "density": [0.1, 1.0, 0.3]}},
            {"model": "b", "parameters": {"weight": -0.6, "density": {"filter": "mlp", "value": 0.5}}},
            {"model": "c", "parameters": {"weight": FILTERED}},
        ],
        "parameters": {"density": 0.35, "lambda": [0.5, 1.5], "normalize": [{"filter": "q_proj", "value": False}, {"value": True}]},
    }  # fmt: skip

    def kernel(arrays: dict[str, Array], shared: dict[str, Any], each: dict[str, Any]) -> Array:
        ground = arrays["base"].ravel()
        tuned = [m for m in arrays if m != "base"]
        trimmed = np.stack([trim_exact(arrays[m].ravel() - ground, each["density"][m]) for m in tuned])
        weights = [each["weight"][m] for m in tuned]
        merged = elect(trimmed, weights, weight_in_election=True, zero_sign="positive", normalize=shared["normalize"])
        return np.asarray(ground + np.float32(shared["lambda"]) * merged)

    close(run(recipe), expected(recipe, models, kernel))


def test_task_arithmetic(models: dict[str, Model]) -> None:
    recipe = {
        "merge_method": "task_arithmetic", "base_model": "base",
        "models": [
            {"model": "a", "parameters": {"weight": GRADIENT}}, {"model": "b", "parameters": {"weight": FILTERED}},
            {"model": "base"},
        ],
        "parameters": {"lambda": {"filter": "*", "value": [0.5, 1.5]}, "normalize": False},
    }  # fmt: skip

    def kernel(arrays: dict[str, Array], shared: dict[str, Any], each: dict[str, Any]) -> Array:
        ground = arrays["base"].astype(np.float64)
        total = sum(each["weight"][m] * (arrays[m] - ground) for m in ("a", "b"))
        return np.asarray(ground + shared["lambda"] * total)

    close(run(recipe), expected(recipe, models, kernel))


def test_passthrough(models: dict[str, Model]) -> None:
    recipe = {
        "merge_method": "passthrough",
        "models": [{"model": "b", "parameters": {"scale": [{"filter": "down_proj", "value": [0, 1, 0.5]}, {"filter": "norm", "value": 2}]}}],
    }  # fmt: skip
    close(run(recipe), expected(recipe, models, lambda arrays, shared, each: arrays["b"] * each["scale"]["b"]))


@pytest.mark.parametrize("method", ["dare_linear", "dare-ties"])
def test_dare_at_density_one_drops_nothing(models: dict[str, Model], method: str) -> None:
    """``-`` and ``_`` alike; what is random is tested with the methods."""
    recipe = {
        "merge_method": method, "base_model": "base",
        "models": [{"model": m, "parameters": {"weight": w}} for m, w in (("a", 0.4), ("b", GRADIENT))],
        "parameters": {"density": 1, "normalize": False},
    }  # fmt: skip

    def kernel(arrays: dict[str, Array], shared: dict[str, Any], each: dict[str, Any]) -> Array:
        ground = arrays["base"].ravel()
        taus = np.stack([arrays[m].ravel() - ground for m in ("a", "b")])
        weights = [each["weight"][m] for m in ("a", "b")]
        if method == "dare_linear":
            return np.asarray(ground + (np.array(weights)[:, None] * taus).sum(axis=0))
        return np.asarray(ground + elect(taus, weights, weight_in_election=True, zero_sign="positive", normalize=False))

    close(run(recipe), expected(recipe, models, kernel))


def test_dare_drops_by_density_and_keeps_the_norm(models: dict[str, Model]) -> None:
    """mergekit's rescale: to the L1 norm before, not by 1/density; a tensor at density 0.5 keeps about half."""
    rng = np.random.default_rng(3)
    big = {"layers.0.w": rng.standard_normal((200, 100)).astype(np.float32)}
    write_tensors(Path("big/model.safetensors"), big)
    moved = {n: a + np.float32(0.1) * rng.standard_normal(a.shape).astype(np.float32) for n, a in big.items()}
    write_tensors(Path("moved/model.safetensors"), moved)
    for rescale in (True, False):
        recipe = {
            "merge_method": "dare_linear", "base_model": "big",
            "models": [{"model": "moved", "parameters": {"weight": 1, "density": "5e-1"}}], "parameters": {"rescale": rescale},
        }  # fmt: skip
        after = run(recipe)["layers.0.w"] - big["layers.0.w"]
        before = moved["layers.0.w"] - big["layers.0.w"]
        kept = after != 0
        assert abs(kept.mean() - 0.5) < 4 * np.sqrt(0.25 / kept.size)
        if rescale:
            assert np.abs(after).sum() == pytest.approx(np.abs(before).sum(), rel=1e-4)
        else:
            np.testing.assert_allclose(after[kept], before[kept], atol=1e-6)


def test_base_model_is_one_more_model_where_the_method_has_no_base(models: dict[str, Model]) -> None:
    """It is appended if it is not listed, and takes its weight from the recipe's parameters."""
    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "base_model": "base",
        "models": [{"model": "a", "parameters": {"weight": 3}}],
        "parameters": {"weight": 1},
    }
    found = run(recipe)
    for name, values in found.items():
        np.testing.assert_allclose(values, (3 * models["a"][name] + models["base"][name]) / 4, rtol=1e-6, atol=1e-7)
    listed = recipe | {"models": [{"model": "base"}, *recipe["models"]]}
    assert all(np.array_equal(a, found[n]) for n, a in run(listed).items())


def test_the_base_takes_no_part_where_the_method_has_one(models: dict[str, Model]) -> None:
    """Listing it changes nothing; parameters that it is given have no effect, which is said."""
    recipe: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "a", "parameters": {"weight": 0.5}}],
    }
    found = run(recipe)
    listed = recipe | {"models": [{"model": "base", "parameters": {"weight": 9}}, *recipe["models"]]}
    assert all(np.array_equal(a, found[n]) for n, a in run(listed).items())
    assert any("have no effect" in note for note in json.loads(Path("out/nett.json").read_text())["notes"])


@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [("bfloat16", None), ("float16", "float32"), ("float32", "bfloat16"), ("torch.bfloat16", "float64"), ("float32", None)],
)  # fmt: skip
def test_types(models: dict[str, Model], dtype: str, out_dtype: str | None) -> None:
    """Inputs are rounded to dtype, sums are in float32, the output is rounded once, to out_dtype or else dtype."""
    names = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64", "torch.bfloat16": "BF16"}
    recipe = {
        "merge_method": "linear", "dtype": dtype, "out_dtype": out_dtype,
        "models": [{"model": m, "parameters": {"weight": 1}} for m in ("a", "b")],
    }  # fmt: skip
    found = run(recipe)
    stored = names[out_dtype or dtype]
    assert {e["dtype"] for n, e in header_of(Path("out/model.safetensors")).items() if n != "__metadata__"} == {stored}
    for name, values in found.items():
        a, b = (rounded(models[m][name], names[dtype]).astype(np.float32) for m in ("a", "b"))
        np.testing.assert_array_equal(values, rounded((a + b) / np.float32(2), stored))


def test_types_of_the_inputs_are_kept(models: dict[str, Model]) -> None:
    for name in ("a", "b"):
        write_tensors(Path(f"{name}16/model.safetensors"), models[name], "BF16")
    recipe = {
        "merge_method": "linear",
        "models": [{"model": f"{m}16", "parameters": {"weight": 1}} for m in ("a", "b")],
    }
    run(recipe)
    assert {e["dtype"] for e in header_of(Path("out/model.safetensors")).values() if "dtype" in e} == {"BF16"}
    recipe["models"][1]["model"] = "b"  # type: ignore[index]
    run(recipe)
    assert {e["dtype"] for e in header_of(Path("out/model.safetensors")).values() if "dtype" in e} == {"F32"}


def test_layers_that_stand_alone_have_t_one(models: dict[str, Model]) -> None:
    """And what is outside has t = 0, in a model of one layer too."""
    tensors = {"layers.0.w": np.ones((2, 2), np.float32), "head": np.ones(2, np.float32)}
    write_tensors(Path("one/model.safetensors"), tensors)
    found = run({"merge_method": "passthrough", "models": [{"model": "one", "parameters": {"scale": [2, 3, 5]}}]})
    assert np.unique(found["layers.0.w"]) == [5.0] and np.unique(found["head"]) == [2.0]


def test_each_stack_counts_its_own_layers(models: dict[str, Model]) -> None:
    tensors = {
        f"{s}.layers.{i}.w": np.ones(2, np.float32) for s, n in (("encoder", 2), ("decoder", 3)) for i in range(n)
    }
    write_tensors(Path("both/model.safetensors"), tensors)
    found = run({"merge_method": "passthrough", "models": [{"model": "both", "parameters": {"scale": [1, 3]}}]})
    assert [float(found[f"encoder.layers.{i}.w"][0]) for i in range(2)] == [1, 3]
    assert [float(found[f"decoder.layers.{i}.w"][0]) for i in range(3)] == [1, 2, 3]


def test_an_empty_list_is_as_if_nothing_were_said(models: dict[str, Model]) -> None:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": "a", "parameters": {"weight": []}}, {"model": "b"}],
        "parameters": {"weight": 2},
    }
    found = run(recipe)
    assert all(np.allclose(v, (models["a"][n] + models["b"][n]) / 2, atol=1e-6) for n, v in found.items())


def test_integers_are_copied(models: dict[str, Model]) -> None:
    for name in ("a", "b"):
        write_tensors(Path(f"{name}i/model.safetensors"), models[name] | {"steps": np.arange(5)})
    recipe = {"merge_method": "linear", "models": [{"model": f"{m}i", "parameters": {"weight": 1}} for m in ("a", "b")]}
    assert np.array_equal(run(recipe)["steps"], np.arange(5))


def test_models_as_mappings_and_adapters(models: dict[str, Model], tmp_path: Path) -> None:
    """``{model: {path: …}}``, and BASE+ADAPTER with the adapter applied while streaming."""
    rng = np.random.default_rng(1)
    factors = {
        "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight": rng.standard_normal((2, 4)).astype(
            np.float32
        ),
        "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight": rng.standard_normal((4, 2)).astype(
            np.float32
        ),
    }
    write_tensors(Path("lora/adapter_model.safetensors"), factors)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 6,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "base",
    }
    Path("lora/adapter_config.json").write_text(json.dumps(config))
    a, b = factors.values()
    wanted = models["base"] | {
        "model.layers.1.self_attn.q_proj.weight": models["base"]["model.layers.1.self_attn.q_proj.weight"] + 3 * b @ a
    }
    for reference in (
        "base+lora",
        {"model": "base", "lora": "lora"},
        {"model": {"path": "base"}, "lora": {"path": "lora"}},
    ):
        found = run({"merge_method": "passthrough", "models": [{"model": reference}]})
        close(found, wanted)


def test_the_receipt_holds_the_recipe(models: dict[str, Model]) -> None:
    text = "merge_method: linear  # a comment\nmodels:\n  - {model: a, parameters: {weight: [0.2, 1]}}\n  - {model: b, parameters: {weight: 1}}\n"
    run(text)
    receipt = json.loads(Path("out/nett.json").read_text())
    assert receipt["recipe"] == text and receipt["method"] == "linear" and receipt["proof"] == "kept"
    assert "explain" in receipt["parameters"]["weight"]  # it differs from tensor to tensor
    nett("verify", "out", "--rerun").succeeded()


def test_dry_run_counts_what_filters_match(models: dict[str, Model]) -> None:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": "a", "parameters": {"weight": FILTERED}}, {"model": "b", "parameters": {"weight": 1}}],
    }
    write_recipe(Path("recipe.yml"), recipe)
    plan = json.loads(nett("merge", "recipe.yml", "--out", "out", "--dry-run").succeeded().out)
    text = json.dumps(plan)
    assert "filter 'self_attn'" in text and f"matches 4 of {len(NAMES)} tensors" in text
    assert not Path("out").exists()


def test_paths_are_relative_to_the_working_folder_not_to_the_recipe(models: dict[str, Model], tmp_path: Path) -> None:
    Path("recipes").mkdir()
    file = write_recipe(Path("recipes/r.yaml"), {"merge_method": "passthrough", "models": [{"model": "a"}]})
    nett("merge", str(file), "--out", "out", "--no-speak").succeeded()
    with open_checkpoint("out") as found:
        assert np.array_equal(found.values("model.norm.weight"), models["a"]["model.norm.weight"])


def test_published_schema_takes_what_runs(models: dict[str, Model]) -> None:
    text = (Path(package.__file__).parents[2] / "docs" / "recipe.schema.json").read_text()
    schema = jsonschema.Draft202012Validator(json.loads(text))  # made once: it is large
    good = {"merge_method": "ties", "base_model": "base", "models": [{"model": "a", "parameters": {"weight": FILTERED, "density": "1e-1"}}],
            "parameters": {"normalize": [True, False], "lambda": GRADIENT}, "dtype": "bfloat16"}  # fmt: skip
    schema.validate(good)
    run(good)
    for bad in (
        good | {"merge_methods": "x"},
        good | {"parameters": {"lamda": 1}},
        good | {"slices": []},
        good | {"dtype": "int8"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            schema.validate(bad)
        write_recipe(Path("bad.yml"), bad)
        assert nett("merge", "bad.yml", "--out", "o2").code == 2


MEAN = (
    "merge_method: linear\nmodels:\n  - {model: a, parameters: {weight: 3}}\n  - {model: b, parameters: {weight: 1}}\n"
)


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("x-own: &three {weight: 3}\nmerge_method: linear\nmodels:\n  - {model: a, parameters: *three}\n"
         "  - {model: b, parameters: {<<: *three, weight: 1}}\n", []),
        ("common_models:\n  - &m a\n  - &n b\nmerge_method: linear\nmodels:\n  - {model: *m, parameters: {weight: 3}}\n"
         "  - {model: *n, parameters: {weight: 1}}\n", []),
        (MEAN + "x-said: by whom\n", ["x-said (line 5) has no effect: no alias stands for any of it"]),
    ],
)  # fmt: skip
def test_keys_that_hold_what_aliases_stand_for(text: str, notes: list[str], models: dict[str, Model]) -> None:
    """As mergekit 0.1.5, which passes over every key that it does not know; nett takes these only."""
    found = run(text)
    assert all(np.allclose(v, (3 * models["a"][n] + models["b"][n]) / 4, atol=1e-6) for n, v in found.items())
    assert json.loads(Path("out/nett.json").read_text())["notes"] == notes


@pytest.mark.parametrize(
    ("head", "models_parameters", "said"),
    [
        ("parametres: &p {weight: 1}\n", "*p", "unknown key 'parametres'. Did you mean 'parameters'?"),
        ("shared: &p {weight: 1}\n", "{weight: 1}", "unknown key 'shared'"),
        ("shared: &p {wieght: 1}\n", "*p", "unknown parameter 'wieght'"),
        ("x-a: &p {weight: !!python/name:os.system 1}\n", "*p", "plain data"),
        ("x-a: &p [*p, *p]\n", "{weight: 1}", "its aliases stand for too much"),
    ],
)
def test_what_such_keys_may_not_hold(head: str, models_parameters: str, said: str, models: dict[str, Model]) -> None:
    text = f"{head}merge_method: linear\nmodels:\n  - {{model: a, parameters: {models_parameters}}}\n"
    write_recipe(Path("recipe.yml"), text)
    nett("merge", "recipe.yml", "--out", "out", "--no-speak").failed(2, "recipe.yml:", said)


def test_anchors_and_merge_keys(models: dict[str, Model]) -> None:
    text = (
        "merge_method: linear\nparameters: &all {weight: 1}\nmodels:\n"
        "  - model: a\n    parameters: {<<: *all, weight: 3}\n  - model: b\n    parameters: *all\n"
    )
    assert yaml.safe_load(text)["models"][0]["parameters"] == {"weight": 3}
    found = run(text)
    assert all(np.allclose(v, (3 * models["a"][n] + models["b"][n]) / 4, atol=1e-6) for n, v in found.items())
