"""What a recipe may not say: refused before any work, with file, line, method, what would be accepted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.cli import nett
from support.recipes import write_family, write_recipe
from support.tensors import write_tensors

GOOD = """\
merge_method: ties
base_model: base
models:
  - model: a
    parameters:
      weight: 1.0
      density: 0.5
  - model: b
    parameters: {weight: 0.5}
parameters:
  density: 0.4
  lambda: 1.0
dtype: float32
"""


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_family(tmp_path)


def refused(text: str, line: int | None, *parts: str, code: int = 2) -> None:
    """Of the run, its dry run and explain alike; nothing is left behind."""
    write_recipe(Path("recipe.yml"), text)
    before = sorted(p.name for p in Path().iterdir())
    for words in (
        ["recipe.yml", "--out", "out"],
        ["recipe.yml", "--out", "out", "--dry-run"],
        ["explain", "recipe.yml"],
    ):
        said = nett("merge", *words, *(["--no-speak"] if words[0] != "explain" else []))
        said.failed(code, *parts)
        if line is not None:
            assert f"recipe.yml:{line} " in said.err or f"recipe.yml:{line}:" in said.err, said.err
    assert sorted(p.name for p in Path().iterdir()) == before


def test_the_good_one_runs() -> None:
    write_recipe(Path("recipe.yml"), GOOD)
    nett("merge", "recipe.yml", "--out", "out", "--no-speak").succeeded()
    nett("merge", "explain", "recipe.yml").succeeded()


CHANGES = {
    "unknown key": ("dtype: float32", "dtpye: float32", 13, ["merge/ties", "unknown key 'dtpye'", "Did you mean 'dtype'"]),
    "unknown key far from any": ("dtype: float32", "zzz: 1", 13, ["unknown key 'zzz'", "merge_method", "base_model"]),
    "key of a model": ("  - model: b\n", "  - model: b\n    paramters: {}\n", 9, ["'paramters'", "Did you mean 'parameters'"]),
    "parameter of a model": ("      density: 0.5", "      densty: 0.5", 7, ["merge/ties", "unknown parameter 'densty'", "Did you mean 'density'", "0 <= density <= 1", "nett show merge/ties"]),
    "parameter of all": ("  lambda: 1.0", "  lamda: 1.0", 12, ["unknown parameter 'lamda'", "Did you mean 'lambda'"]),
    "nett's own name of it": ("  lambda: 1.0", "  scale: 1.0", 12, ["unknown parameter 'scale'", "Recipes call it 'lambda'"]),
    "parameter of all at a model": ("      density: 0.5", "      normalize: true", 7, ["'normalize' is one value for the whole merge", "Move it"]),
    "out of range": ("      density: 0.5", "      density: 1.5", 7, ["density = 1.5", "0 <= density <= 1"]),
    "out of range in a gradient": ("      density: 0.5", "      density: [0.1, 0.5, -0.2]", 7, ["density = -0.2", "0 <= density <= 1"]),
    "out of range in a condition": ("  density: 0.4", "  density:\n    - {filter: mlp, value: 0.3}\n    - value: [0, 2]", 13, ["density = 2", "0 <= density <= 1"]),
    "no number": ("      weight: 1.0", "      weight: much", 6, ["weight = 'much'", "number"]),
    "no finite number": ("      weight: 1.0", "      weight: .nan", 6, ["weight", "finite"]),
    "a condition without a value": ("      weight: 1.0", "      weight: {filter: mlp}", 6, ["'value' is missing"]),
    "a condition with a strange key": ("      weight: 1.0", "      weight: {filtre: mlp, value: 1}", 6, ["unknown key 'filtre'", "Did you mean 'filter'"]),
    "a filter that is no text": ("      weight: 1.0", "      weight: {filter: 3, value: 1}", 6, ["filter = 3 is not a text"]),
    "a filter that matches nothing": ("      weight: 1.0", "      weight: [{filter: mpl, value: 1}, {value: 2}]", 6, ["the filter 'mpl' matches no tensor", "Did you mean 'mlp'"]),
    "a filter with stars": ("      weight: 1.0", "      weight: [{filter: '*.mlp', value: 1}, {value: 2}]", 6, ["matches no tensor", "no meaning"]),
    "unknown method": ("merge_method: ties", "merge_method: tiess", 1, ["'tiess'", "Did you mean 'ties'"]),
    "a method of nett alone": ("merge_method: ties", "merge_method: tall_masks", 1, ["'tall_masks'", "mergekit does not have"]),
    "no method": ("merge_method: ties\n", "", None, ["merge_method is missing"]),
    "a method that is no name": ("merge_method: ties", "merge_method: [ties]", 1, ["is not the name of a method"]),
    "no base": ("base_model: base\n", "", None, ["base_model is missing"]),
    "no models": ("models:", "modells:", 3, ["unknown key 'modells'", "Did you mean 'models'"]),
    "models left out": ("models:\n  - model: a\n    parameters:\n      weight: 1.0\n      density: 0.5\n  - model: b\n    parameters: {weight: 0.5}\n", "", 1, ["'models' is missing (or 'slices' or 'modules')"]),
    "models and slices": ("dtype: float32", "slices: []", 13, ["both 'models' (line 3) and 'slices' say what is merged", "Keep one"]),
    "models and modules": ("dtype: float32", "modules: {}", 13, ["both 'models' (line 3) and 'modules'"]),
    "both words for the tokenizer": ("dtype: float32", "tokenizer_source: union\ntokenizer: {source: base}", 13, ["two ways to say one thing", "Move the source"]),
    "a tokenizer that is near a word": ("dtype: float32", "tokenizer_source: onion", 13, ["'onion' is neither union nor base", "Did you mean 'union'"]),
    "a tokenizer that is not there": ("dtype: float32", "tokenizer_source: some/where", 13, ["some/where", "neither union nor base", "downloads nothing"]),
    "a tokenizer that is no text": ("dtype: float32", "tokenizer_source: [union]", 13, ["is not the path of a model"]),
    "key of the tokenizer": ("dtype: float32", "tokenizer:\n  sorce: union", 14, ["unknown key 'sorce'", "Did you mean 'source'"]),
    "key of a token": ("dtype: float32", "tokenizer:\n  tokens:\n    <s>:\n      forse: true", 16, ["unknown key 'forse'", "Did you mean 'force'"]),
    "kind of a source": ("dtype: float32", "tokenizer:\n  tokens:\n    <s>:\n      source: {kind: zeros}", 16, ["kind = 'zeros'", "Did you mean 'zero'"]),
    "key of a source": ("dtype: float32", "tokenizer:\n  tokens:\n    <s>:\n      source: {kind: model_token, model: a, tokn: b}", 16, ["unknown key 'tokn'", "Did you mean 'token'"]),
    "key of zeros": ("dtype: float32", "tokenizer:\n  tokens:\n    <s>:\n      source: {kind: zero, model: a}", 16, ["unknown key 'model' in a source of kind zero"]),
    "a token of no model": ("dtype: float32", "tokenizer:\n  tokens:\n    <s>:\n      source: {kind: model_token, token: b}", 16, ["needs the model whose token it is"]),
    "a token and its number": ("dtype: float32", "tokenizer:\n  tokens:\n    <s>:\n      source: {kind: model_token, model: a, token: b, token_id: 1}", 16, ["one of 'token' and 'token_id', not both"]),
    "neither token nor number": ("dtype: float32", "tokenizer:\n  tokens:\n    <s>:\n      source: {kind: model_token, model: a}", 16, ["one of 'token' and 'token_id', not both"]),
    "a number below zero": ("dtype: float32", "tokenizer:\n  tokens:\n    <s>:\n      source: {kind: model_token, model: a, token_id: -1}", 16, ["token_id = -1", "0 or more"]),
    "force that is no truth": ("dtype: float32", "tokenizer:\n  tokens:\n    <s>: {force: 3}", 15, ["force = 3 is not true or false"]),
    "padding that is no number": ("dtype: float32", "tokenizer: {pad_to_multiple_of: 0}", 13, ["pad_to_multiple_of = 0", "1 or more"]),
    "tokens that are a list": ("dtype: float32", "tokenizer: {tokens: [a]}", 13, ["tokenizer.tokens = ['a'] is not a mapping"]),
    "models without a tokenizer": ("dtype: float32", "tokenizer_source: union", 13, ["'base' has no tokenizer", "tokenizer.json"]),
    "dtype": ("dtype: float32", "dtype: float23", 13, ["dtype = 'float23' is not one of", "Did you mean 'float32'"]),
    "out_dtype": ("dtype: float32", "out_dtype: int8", 13, ["out_dtype = 'int8' is not one of"]),
    "key twice": ("dtype: float32", "dtype: float32\ndtype: bfloat16", 14, ["has the key 'dtype' twice"]),
    "parameter twice": ("      density: 0.5", "      density: 0.5\n      density: 0.6", 8, ["has the key 'density' twice"]),
    "key that is no text": ("dtype: float32", "1: float32", 13, ["has the key 1", "quotes"]),
    "a model twice": ("  - model: b", "  - model: a", 8, ["names 'a' twice (line 4)"]),
    "a model in two spellings": ("  - model: b", "  - model: ./a", 8, ["'./a' is 'a' of line 4"]),
    "a path that is not there": ("  - model: b", "  - model: bb", 8, ["bb", "no such file or folder", "Did you mean b?"]),
    "a path that is near nothing": ("  - model: b", "  - model: some/where", 8, ["some/where", "relative to the working folder", "downloads nothing"]),
    "a revision": ("  - model: b", "  - model: org/name@main", 8, ["revision", "download"]),
    "a tag": ("dtype: float32", "dtype: !!python/name:os.system x", 13, ["plain data"]),
    "a date": ("      weight: 1.0", "      weight: 2024-01-01", 6, ["plain data", "quotes"]),
    "no YAML": ("dtype: float32", "dtype: [", None, ["is not valid YAML"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_refused(name: str) -> None:
    old, new, line, parts = CHANGES[name]
    assert GOOD.count(old) == 1
    code = 3 if name == "models without a tokenizer" or name.startswith("a path that") else 2
    refused(GOOD.replace(old, new), line, *parts, code=code)


@pytest.mark.parametrize(
    ("text", "parts"),
    [("", ["empty"]), ("[]", ["not a mapping"]), ("just text", ["not a mapping"]), ("\t", ["YAML"]), ("# nothing\n", ["empty"])],
)  # fmt: skip
def test_files_that_are_no_recipe(text: str, parts: list[str]) -> None:
    refused(text, None, *parts)


def test_a_file_that_is_not_there_and_one_that_is_no_text() -> None:
    nett("merge", "nowhere.yml", "--out", "out").failed(2, "nowhere.yml", "cannot be read")
    Path("recipe.yml").write_bytes(b"\xff\xfe\x00")
    nett("merge", "recipe.yml", "--out", "out").failed(2, "is not UTF-8 text")


def test_aliases_that_blow_up() -> None:
    """A few lines that stand for a billion values are refused, quickly."""
    text = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        text += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    write_recipe(Path("recipe.yml"), text)
    nett("merge", "explain", "recipe.yml").failed(2, "aliases stand for too much")


def test_required_weights() -> None:
    """Named for the tensor and the model that lack it; an empty list is no value."""
    refused(
        GOOD.replace("    parameters: {weight: 0.5}\n", ""),
        8,
        "the parameter 'weight' of b has no value for the tensor",
    )
    refused(
        GOOD.replace("{weight: 0.5}", "{weight: {filter: mlp, value: 1}}"),
        9,
        "'weight' of b",
        "none of its settings matches",
    )


@pytest.mark.parametrize(("method", "given", "wanted"), [("slerp", 2, 1), ("passthrough", 2, 1)])
def test_how_many_models(method: str, given: int, wanted: int) -> None:
    listed = "".join(f"  - model: {m}\n" for m in "abc"[:given])
    base = "base_model: base\n" if method == "slerp" else ""
    refused(f"merge_method: {method}\n{base}models:\n{listed}parameters: {{{'t: 0.5' if method == 'slerp' else 'scale: 1'}}}\n", 3 if base else 2,
            f"takes {wanted} model", f"{given} were given")  # fmt: skip


def test_only_the_base_is_listed() -> None:
    refused(
        "merge_method: ties\nbase_model: base\nmodels:\n  - model: base\n",
        3,
        "takes one or more models",
        "0 were given",
    )


def test_shapes_that_differ_are_refused_not_truncated() -> None:
    tensors = {"model.norm.weight": np.ones(7, np.float32)}
    write_tensors(Path("odd/model.safetensors"), tensors)
    refused(GOOD.replace("model: b", "model: odd"), None, "odd", code=3)


def test_how_many_more_lines_are_wrong() -> None:
    text = GOOD.replace("      density: 0.5", "      densty: 0.5").replace("  lambda: 1.0", "  lamda: 1.0")
    refused(text, 7, "'densty'", "and 1 more line with errors")
