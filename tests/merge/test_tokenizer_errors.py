"""What a recipe with a tokenizer may not ask for: found before any tensor is read, with line and what there is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from support.cli import nett
from support.recipes import write_recipe
from support.tensors import write_tensors
from support.vocabularies import write_model, write_tokenizer

WORDS = ["<unk>", "apple", "apply", "b", "c"]
RECIPE = """\
merge_method: linear
base_model: base
models:
  - {model: base, parameters: {weight: 1}}
  - {model: a, parameters: {weight: 1}}
tokenizer:
  source: union
  tokens:
    "apple":
      source: SOURCE
      force: true
"""
TOKEN_LINE = 9


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "base", WORDS, ["<unk>", "<s>"], seed=1)
    write_model(tmp_path / "a", ["<unk>", "b", "x", "y"], seed=2)


def refused(text: str, line: int | None, *parts: str, code: int = 2) -> None:
    """By the run, the dry run and explain; nothing is left behind."""
    write_recipe(Path("recipe.yml"), text)
    for words in (
        ["recipe.yml", "--out", "out"],
        ["recipe.yml", "--out", "out", "--dry-run"],
        ["explain", "recipe.yml"],
    ):
        said = nett("merge", *words)
        said.failed(code, *parts)
        if line is not None:
            assert f"recipe.yml:{line} merge/linear" in said.err, said.err
    assert not Path("out").exists()


SOURCES = {
    "a model that is not merged": ("c", ["'apple' is to come from 'c'", "not one of the models merged", "base, a"]),
    "a model that lacks the token": ("a", ["a has no token 'apple'"]),
    "a token that is nearly there": (
        "{kind: model_token, model: base, token: aple}",
        ["base has no token 'aple'", "Did you mean", "'apple'"],
    ),
    "a row beyond the last": (
        "{kind: model_token, model: a, token_id: 4}",
        ["token_id = 4 is no row of a", "0 <= token_id < 4"],
    ),
    "nothing": ("null", ["'apple' is forced, but no source says to what", "kind: zero"]),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources_of_tokens(name: str) -> None:
    source, parts = SOURCES[name]
    refused(RECIPE.replace("SOURCE", source), TOKEN_LINE, *parts)


def test_a_token_without_a_row() -> None:
    write_model(Path("a"), ["<unk>", "b", "x", "y", "apple"], seed=2, rows=4)
    refused(RECIPE.replace("SOURCE", "a"), TOKEN_LINE, "a has the token 'apple' (id 4), but only 4 rows")


def test_broken_tokenizers() -> None:
    text = RECIPE.replace("SOURCE", "{kind: zero}")
    for content, parts in (
        ('{"version": ', ["tokenizer.json", "not valid JSON"]),
        ('{"version": "1.0"}', ["tokenizer.json", "is not a tokenizer that can be read"]),
        ("[]", ["tokenizer.json", "is not a JSON object"]),
    ):
        Path("a/tokenizer.json").write_text(content)
        refused(text, None, "a", *parts, code=3)
    Path("a/tokenizer.json").unlink()
    Path("a/tokenizer.model").write_bytes(b"no sentencepiece")
    refused(text, None, "has a tokenizer without tokenizer.json", "save_pretrained", code=3)
    Path("a/tokenizer.model").unlink()
    Path("base/tokenizer.json").unlink()
    refused(text, 7, "'base' has no tokenizer", "config.json", code=3)


def test_folders_that_hold_no_tokenizer() -> None:
    text = RECIPE.replace("SOURCE", "{kind: zero}")
    Path("empty").mkdir()
    refused(text.replace("source: union", "source: empty"), 7, "'empty' holds no tokenizer")
    refused(text.replace("source: union", "source: emty"), 7, "'emty' is neither union nor base", "downloads nothing")


def test_ids_without_a_token_among_those_with_one() -> None:
    """The library would give a new token an id that another has."""
    write_model(Path("base"), WORDS, seed=1, rows=9)
    content = json.loads(Path("base/tokenizer.json").read_text())
    content["model"]["vocab"]["c"] = 6
    Path("base/tokenizer.json").write_text(json.dumps(content))
    text = RECIPE.replace("SOURCE", "{kind: zero}")
    refused(text, None, "ids that stand for no token", "cannot be added", code=3)
    write_recipe(Path("recipe.yml"), text.replace("source: union", "source: base"))
    nett("merge", "recipe.yml", "--out", "out", "--no-speak").succeeded()  # nothing to add


def test_models_whose_tables_cannot_be_brought_to_one() -> None:
    text = RECIPE.replace("SOURCE", "{kind: zero}")
    norm = {"model.norm.weight": np.ones(4, np.float32)}
    table = np.ones((4, 4), np.float32)
    for tensors, parts in (
        (norm, ["has no tensor called as embeddings are"]),
        (
            norm | {"model.embed_tokens.weight": table, "lm_head.weight": table[:3]},
            ["different numbers of rows", "lm_head"],
        ),
        (norm | {"model.embed_tokens.weight": table.astype(np.int8)}, ["is stored as I8"]),
    ):
        write_tensors(Path("a/model.safetensors"), tensors)
        refused(text, None, *parts, code=3)


def test_notes_tell_what_has_no_effect() -> None:
    write_tokenizer(Path("a"), ["<unk>", "b", "apple", "y"])
    write_recipe(Path("recipe.yml"), RECIPE.replace("SOURCE", "base").replace("      force: true\n", ""))
    said = nett("merge", "explain", "recipe.yml").succeeded().out
    assert "the source of 'apple' (line 9) has no effect: all models have it" in said


def test_no_adapter_of_another_vocabulary() -> None:
    """An adapter adds to the base as it lies on disk, whose rows would stand for other tokens."""
    text = RECIPE[: RECIPE.index("tokenizer:")] + "tokenizer_source: union\n"
    write_recipe(Path("recipe.yml"), text)
    said = nett("merge", "recipe.yml", "--out", "out", "--as-lora", "2")
    said.failed(2, "changes config, tokenizer or layers", "Leave out --as-lora")
    assert not Path("out").exists()
