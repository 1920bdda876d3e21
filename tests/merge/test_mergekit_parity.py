"""Recipes here and in mergekit give the same checkpoints.

The stored results are those of mergekit 0.1.5 (``record_mergekit.py`` beside this file wrote them: inputs and
outputs, float32 as base64). The live comparison, on larger models, needs mergekit: NETT_MERGEKIT=…/bin/mergekit-yaml.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.merge.recipe_run import run_recipe
from support.mergekit import (
    CASES,
    FLOAT32,
    SHAPE,
    UNIT,
    Tensors,
    at_threshold,
    furthest,
    model,
    read,
    recipe_text,
    run_mergekit,
    write_models,
)
from support.tensors import write_tensors

MERGEKIT = os.environ.get("NETT_MERGEKIT")
STORED = Path(__file__).with_name("mergekit-0.1.5.json")
live = [
    pytest.mark.slow,
    pytest.mark.skipif(not MERGEKIT, reason="NETT_MERGEKIT does not name a mergekit-yaml executable"),
]


def live_test(function: Any) -> Any:
    for mark in live:
        function = mark(function)
    return function


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), SHAPE)


def unpacked(stored: dict[str, Any]) -> tuple[Tensors, dict[str, str]]:
    """Tensors and their types."""
    tensors = {
        n: np.frombuffer(base64.b64decode(t["float32"]), "<f4").reshape(t["shape"]).copy() for n, t in stored.items()
    }
    return tensors, {n: t["dtype"] for n, t in stored.items()}


@pytest.fixture(scope="module")
def stored_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    for name, stored in json.loads(STORED.read_text())["models"].items():
        config = stored.pop("adapter_config", None)
        tensors, types = unpacked(stored)
        file = "model.safetensors" if config is None else "adapter_model.safetensors"
        write_tensors(folder / name / file, tensors, types)
        if config is not None:
            (folder / name / "adapter_config.json").write_text(json.dumps(config))
    return folder


def ours(models: Path, folder: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensors, dict[str, str]]:
    monkeypatch.chdir(models)
    file = folder / "recipe.yml"
    file.write_text(recipe_text(recipe))
    run_recipe(file, out=folder / "nett", speak=False)
    return read(folder / "nett")


def compare(name: str, mine: Any, theirs: Any, models: Path) -> None:
    """Names, shapes, types; values away from ties at the threshold."""
    recipe = CASES[name]
    (tensors, types), (expected, expected_types) = mine, theirs
    assert types == expected_types
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in expected.items()}
    trims = isinstance(recipe, dict) and recipe["merge_method"] == "ties"
    ties = at_threshold(models, recipe) if trims else None
    unit = UNIT.get(name, FLOAT32)
    worst = furthest(tensors, expected, unit, ties)
    left_out = sum(int(t.sum()) for t in ties.values()) if ties else 0
    total = sum(t.size for t in tensors.values())
    print(f"{name}: furthest {worst:.3g} x {unit:.3g}; left out {left_out} of {total} as ties")
    assert worst <= (4.0 if unit == FLOAT32 else 1.0)
    assert left_out < 0.02 * total


@pytest.mark.parametrize("name", CASES)
def test_same_as_stored(name: str, stored_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = json.loads(STORED.read_text())
    assert stored["cases"][name]["recipe"] == json.loads(json.dumps(CASES[name])), "record again: the recipe changed"
    mine = ours(stored_models, tmp_path, CASES[name], monkeypatch)
    compare(name, mine, unpacked(stored["cases"][name]["result"]), stored_models)


@live_test
@pytest.mark.parametrize("name", CASES)
def test_same_checkpoint(name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MERGEKIT is not None
    mine = ours(models, tmp_path, CASES[name], monkeypatch)
    compare(name, mine, read(run_mergekit(MERGEKIT, models, CASES[name], tmp_path / "mergekit")), models)


@live_test
@pytest.mark.parametrize("rescale", [True, False])
def test_dare_drops_as_many_and_keeps_the_norm(
    rescale: bool, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is dropped is random in both; how much, and what the rest is multiplied by, is not."""
    recipe = {
        "merge_method": "dare_linear",
        "base_model": "base",
        "models": [model("a", weight=1, density=0.6)],
        "parameters": {"rescale": rescale},
    }
    assert MERGEKIT is not None
    made = [
        ours(models, tmp_path, recipe, monkeypatch)[0],
        read(run_mergekit(MERGEKIT, models, recipe, tmp_path / "mergekit"))[0],
    ]
    base, tuned = read(models / "base")[0], read(models / "a")[0]
    total = sum(t.size for t in base.values())
    for result in made:
        kept = sum(int((result[n] != base[n]).sum()) for n in base)
        assert abs(kept / total - 0.6) < 4 * np.sqrt(0.6 * 0.4 / total)
        for name, ground in base.items():
            before, after = tuned[name] - ground, result[name] - ground
            stays = after != 0
            if rescale:
                assert np.abs(after).sum() == pytest.approx(np.abs(before).sum(), rel=1e-3)
            else:
                np.testing.assert_allclose(after[stays], before[stays], atol=8 * FLOAT32)
