"""Recipes with a tokenizer here and in mergekit give the same rows, token by token.

The stored results are those of mergekit 0.1.5 (``record_mergekit_tokens.py`` beside this file wrote them). There the
ids of added tokens differ from run to run; here they are by model and id.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.merge.recipe_run import run_recipe
from support.mergekit import BFLOAT16, FLOAT32, read
from support.mergekit_tokens import CASES, KEPT
from support.recipes import write_recipe
from support.tensors import Array, write_tensors
from support.vocabularies import vocabulary_of

STORED: dict[str, Any] = json.loads(Path(__file__).with_name("mergekit-tokens-0.1.5.json").read_text())
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def unpacked(stored: dict[str, Any]) -> dict[str, Array]:
    return {
        n: np.frombuffer(base64.b64decode(t["float32"]), "<f4").reshape(t["shape"]).copy() for n, t in stored.items()
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    for name, stored in STORED["models"].items():
        (folder / name).mkdir()
        for file, content in stored["files"].items():
            (folder / name / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        if "tensors" in stored:
            types = {n: t["dtype"] for n, t in stored["tensors"].items()}
            write_tensors(folder / name / "model.safetensors", unpacked(stored["tensors"]), types)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_same_rows(name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = STORED["cases"][name]
    assert stored["recipe"] == json.loads(json.dumps(CASES[name])), "record again: the recipe changed"
    monkeypatch.chdir(models)
    receipt = run_recipe(write_recipe(tmp_path / "recipe.yml", CASES[name]), out=tmp_path / "out", speak=False)
    ours, _ = read(tmp_path / "out")
    theirs, vocabulary = unpacked(stored["result"]), vocabulary_of(tmp_path / "out")
    assert vocabulary.keys() == stored["vocabulary"].keys()
    rows = json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"]
    assert rows == stored["vocab_size"] + KEPT.get(name, 0) == receipt["vocabulary"]["rows"]
    unit = BFLOAT16 if name == "bfloat16" else 4 * FLOAT32
    for tensor, expected in theirs.items():
        found = ours[tensor]
        if tensor in TABLES:
            assert len(found) == rows and len(expected) == stored["vocab_size"]
            tokens = list(vocabulary)
            found = np.concatenate([found[[vocabulary[t] for t in tokens]], found[len(tokens) : len(expected)]])
            padding = expected[len(tokens) :]
            expected = np.concatenate([expected[[stored["vocabulary"][t] for t in tokens]], padding])
        assert np.all(np.abs(found.astype(np.float64) - expected) <= unit * np.maximum(1, np.abs(expected))), tensor
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("name", KEPT)
def test_rows_to_spare_are_kept_where_mergekit_drops_them(
    name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mergekit's output ends with the last token. Here it has the rows of the models, merged like all others."""
    monkeypatch.chdir(models)
    recipe = CASES[name]
    receipt = run_recipe(write_recipe(tmp_path / "recipe.yml", recipe), out=tmp_path / "out", speak=False)
    ours, _ = read(tmp_path / "out")
    padded, tune = (read(models / m)[0] for m in ("padded", "tune"))
    first = STORED["cases"][name]["vocab_size"]
    for table in TABLES:
        if recipe["merge_method"] == "linear":
            wanted = 0.4 * tune[table] + 0.6 * padded[table]
        else:  # a has no such rows and takes the base's: its task vector is zero there
            wanted = padded[table] + 0.6 * (tune[table] - padded[table])
        np.testing.assert_allclose(ours[table][first:], wanted[first:], atol=4 * FLOAT32)
        assert len(ours[table]) == len(padded[table]) == 14
    assert any("14" in note or "are kept" in note for note in receipt["notes"])
