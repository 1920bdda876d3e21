"""What slices, modules, chat templates and references may not say: file, line, method, and what would be accepted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.cli import nett
from support.recipes import write_family, write_recipe
from support.tensors import write_tensors

SLICES = """\
merge_method: slerp
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - model: a
        layer_range: [1, 3]
    parameters: {t: 0.3}
  - sources:
      - {model: base, layer_range: [0, 1]}
      - {model: b, layer_range: [3, 4]}
parameters: {t: [0.2, 0.8]}
dtype: float32
"""
MODULES = """\
merge_method: linear
modules:
  encoder:
    slices:
      - sources: [{model: x, layer_range: [0, 2]}]
  decoder:
    models: [{model: x}, {model: y}]
    parameters: {weight: 2}
  default:
    models:
      - {model: y}
parameters: {weight: 1}
"""
WHOLE = """\
merge_method: linear
models:
  - model: a
  - model: b
parameters: {weight: 1}
"""
T5 = {"shared.weight": (3, 2)} | {f"{s}.block.{i}.w": (2, 2) for s in ("encoder", "decoder") for i in range(2)}


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    write_family(tmp_path)
    for seed, name in enumerate("xy"):
        rng = np.random.default_rng(seed)
        tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in T5.items()}
        write_tensors(tmp_path / name / "model.safetensors", tensors)


@pytest.mark.parametrize("text", [SLICES, MODULES, WHOLE])
def test_the_good_ones_run(text: str) -> None:
    write_recipe(Path("recipe.yml"), text)
    nett("merge", "recipe.yml", "--out", "out", "--no-speak").succeeded()
    nett("merge", "explain", "recipe.yml").succeeded()


Case = tuple[str, str, str, int, list[str]]
CASES: dict[str, Case] = {
    "unequal ranges": (SLICES, "[3, 4]", "[2, 4]", 11, ["merge/slerp", "layer_range = [2, 4] has 2 layers, but that of 'base' (line 10) has 1", "as many layers"]),
    "past the last layer": (SLICES, "[3, 4]", "[4, 5]", 11, ["layer_range = [4, 5], but 'b' has 4 layers (model.layers)", "at most 4"]),
    "backwards": (SLICES, "[1, 3]", "[3, 1]", 7, ["layer_range = [3, 1] is not a range", "one past the last"]),
    "before the first layer": (SLICES, "[1, 3]", "[-1, 1]", 7, ["layer_range = [-1, 1] is not a range"]),
    "three numbers": (SLICES, "[1, 3]", "[1, 2, 3]", 7, ["layer_range", "is not a range of layers", "[FROM, TO]"]),
    "a range in words": (SLICES, "[1, 3]", "all", 7, ["layer_range = 'all' is not a range of layers"]),
    "half layers": (SLICES, "[1, 3]", "[0.5, 2.5]", 7, ["is not a range of layers", "whole numbers"]),
    "no range": (SLICES, "        layer_range: [1, 3]\n", "", 6, ["'layer_range' is missing"]),
    "key of a source": (SLICES, "        layer_range: [1, 3]", "        layer_rage: [1, 3]", 7, ["unknown key 'layer_rage'", "Did you mean 'layer_range'"]),
    "key of a slice": (SLICES, "    parameters: {t: 0.3}", "    parametres: {t: 0.3}", 8, ["unknown key 'parametres'", "Did you mean 'parameters'"]),
    "key of models in a slice": (SLICES, "  - sources:\n      - {model: base, layer_range: [0, 1]}", "  - models:\n      - {model: base, layer_range: [0, 1]}", 9, ["unknown key 'models'", "Known", "sources"]),
    "no sources": (SLICES, "  - sources:\n      - {model: base, layer_range: [0, 1]}\n      - {model: b, layer_range: [3, 4]}", "  - sources: []", 9, ["'sources' is empty"]),
    "sources that are no list": (SLICES, "- {model: b, layer_range: [3, 4]}", "- b", 11, ["= 'b' is not a mapping"]),
    "a slice without the base": (SLICES, "      - {model: base, layer_range: [0, 1]}", "      - {model: c, layer_range: [0, 1]}", 9, ["the slice does not list the base model 'base' among its sources", "Add it"]),
    "a model twice in a slice": (SLICES, "{model: b, layer_range: [3, 4]}", "{model: base, layer_range: [3, 4]}", 11, ["names 'base' twice", "take two slices"]),
    "two spellings in a slice": (SLICES, "{model: base, layer_range: [0, 1]}", "{model: ./base, layer_range: [0, 1]}", 10, ["'./base' is 'base' of line 2"]),
    "one model too many": (SLICES, "      - {model: b, ", "      - {model: c, layer_range: [0, 1]}\n      - {model: b, ", 9, ["takes 1 model beside base_model, but 2 were given"]),
    "only the base": (SLICES, "      - {model: b, layer_range: [3, 4]}\n", "", 9, ["takes 1 model beside base_model, but 0 were given"]),
    "parameter of all at a source": (SLICES, "        layer_range: [1, 3]", "        layer_range: [1, 3]\n        parameters: {t: 1}", 8, ["'t' is one value for the whole merge", "of the slice"]),
    "parameter of a slice": (SLICES, "{t: 0.3}", "{tt: 0.3}", 8, ["unknown parameter 'tt'", "Did you mean 't'"]),
    "a value out of range in a slice": (SLICES, "{t: 0.3}", "{t: [0, x]}", 8, ["t = 'x'"]),
    "a filter outside its slice": (SLICES, "{t: 0.3}", "{t: [{filter: layers.2., value: 1}, {value: 0}]}", 8, ["the filter 'layers.2.' matches no tensor"]),
    "models beside slices": (SLICES, "dtype: float32", "models: [{model: a}]", 13, ["both 'slices' (line 3) and 'models'", "Keep one"]),
    "a weight of a text": (SLICES, "    parameters: {t: 0.3}", "    residual_weight: x", 8, ["residual_weight = 'x'", "number"]),
    "a slice's base that is not there": (SLICES, "  - sources:\n      - {model: base, layer_range: [0, 1]}", "  - base_model: basis\n    sources:\n      - {model: basis, layer_range: [0, 1]}", 11, ["basis", "no such file"]),
    "no layers at all": (MODULES, "[0, 2]", "[0, 0]", 4, ["all slices are empty, so the output would have no layers"]),
    "several stacks": (MODULES, MODULES[MODULES.index("modules"):], "slices: [{sources: [{model: x, layer_range: [0, 2], parameters: {weight: 1}}]}]\n", 2, ["several stacks of layers", "decoder.block (2 layers), encoder.block (2 layers)", "one module a stack"]),
    "a module that no tensor is of": (MODULES, "  default:", "  vision_tower:", 2, ["no module claims the tensor 'shared.weight'", "encoder", "decoder", "'default'"]),
    "a module too many": (MODULES, "  default:", "  vision_tower: {models: [{model: x}]}\n  default:", 9, ["no tensor of the module 'vision_tower'", "They hold: decoder, encoder, shared"]),
    "two modules for the rest": (MODULES, "  default:", "  shared: {models: [{model: x}]}\n  text_decoder:", 10, ["'shared' and 'text_decoder' both mean what no other module claims"]),
    "a module of both kinds": (MODULES, "    parameters: {weight: 2}", "    slices: []", 8, ["both 'models' (line 7) and 'slices'"]),
    "a module of nothing": (MODULES, "    models: [{model: x}, {model: y}]\n", "", 6, ["the module 'decoder': 'models' is missing (or 'slices')"]),
    "key of a module": (MODULES, "    parameters: {weight: 2}", "    paramters: {weight: 2}", 8, ["unknown key 'paramters'", "Did you mean 'parameters'"]),
    "parameter of a module": (MODULES, "{weight: 2}", "{wait: 2}", 8, ["unknown parameter 'wait'", "'weight'"]),
    "modules that are no mapping": (MODULES, MODULES[MODULES.index("modules"):], "modules: [encoder]\n", 2, ["modules", "mapping"]),
    "a range in a module without layers": (MODULES, "    models:\n      - {model: y}", "    slices:\n      - sources: [{model: y, layer_range: [0, 1]}]", 11, ["layer_range = [0, 1], but 'y' has no layers in this module"]),
    "a template that is near a name": (WHOLE, "models:", "chat_template: chatlm\nmodels:", 2, ["chat_template = 'chatlm' is neither a name nor the text", "Did you mean 'chatml'", "alpaca"]),
    "a template that is no text": (WHOLE, "models:", "chat_template: 3\nmodels:", 2, ["chat_template = 3"]),
    "a template that cannot be read": (WHOLE, "models:", "chat_template: '{% for m in messages %}{{ m.content }'\nmodels:", 2, ["is no template that transformers can read", "line 1 of the template"]),
    "a revision that is no text": (WHOLE, "model: b", "model: {path: b, revision: 3}", 4, ["revision = 3 is not the name of a branch"]),
    "key of a reference": (WHOLE, "model: b", "model: {path: b, revison: x}", 4, ["unknown key 'revison' in a model; known: path, revision"]),
    "key of a mapping of two": (WHOLE, "model: b", "model: {model: b, adapter: c}", 4, ["unknown key 'adapter' in a model; known: model, lora"]),
    "another architecture": (WHOLE, "model: b", "model: {model: b, override_architecture: X}", 4, ["override_architecture = 'X' has no meaning here", "leave it out"]),
    "no path": (WHOLE, "model: b", "model: {path: }", 4, ["None is not the path of a model"]),
    "an adapter that is not there": (WHOLE, "model: b", "model: b+nothing", 4, ["b+nothing"]),
    "a revision of a plain folder": (WHOLE, "model: b", "model: b@main", 4, ["the revision 'main' of 'b'", "no git checkout"]),
}  # fmt: skip
AT_THE_DISK = {"a slice's base that is not there", "an adapter that is not there"}


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str) -> None:
    text, old, new, line, parts = CASES[name]
    assert text.count(old) == 1
    write_recipe(Path("recipe.yml"), text.replace(old, new))
    before = sorted(p.name for p in Path().iterdir())
    for words in (["recipe.yml", "--out", "out", "--no-speak"], ["explain", "recipe.yml"]):
        said = nett("merge", *words)
        said.failed(3 if name in AT_THE_DISK else 2, *parts)
        assert f"recipe.yml:{line} " in said.err or f"recipe.yml:{line}:" in said.err, said.err
    assert sorted(p.name for p in Path().iterdir()) == before
