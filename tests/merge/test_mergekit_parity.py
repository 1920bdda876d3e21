"""Recipes here and in mergekit give the same checkpoints. Needs mergekit: NETT_MERGEKIT=…/bin/mergekit-yaml."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nett.core.checkpoint import open_checkpoint
from nett.core.tiny import write_llama
from nett.merge.recipe import run_recipe

MERGEKIT = os.environ.get("NETT_MERGEKIT")
FLOAT32, BFLOAT16 = 2.0**-23, 2.0**-7
# mergekit adds up in float32 here, but rounds the result to the inputs' type before out_dtype; nett does not.
UNIT = {"linear, bfloat16 as it is": BFLOAT16, "linear, inputs rounded": BFLOAT16}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MERGEKIT, reason="NETT_MERGEKIT does not name a mergekit-yaml executable"),
]

Tensors = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float32 models of four layers, so that sizes |delta| are distinct; m, h and n in narrower types; one layer."""
    folder = tmp_path_factory.mktemp("models")
    shape = {"layers": 4, "hidden": 32, "vocab": 96, "inter": 64, "tied": False}
    write_llama(folder / "base", seed=1, dtype="F32", **shape)
    for seed, name in enumerate(("a", "b", "c")):
        write_llama(folder / name, seed=10 + seed, dtype="F32", noise_from=folder / "base", delta=0.05, **shape)
    for seed, (name, dtype) in enumerate((("m", "BF16"), ("n", "BF16"), ("h", "F16"))):
        write_llama(folder / name, seed=20 + seed, dtype=dtype, noise_from=folder / "base", delta=0.05, **shape)
    one = shape | {"layers": 1, "tied": True}
    write_llama(folder / "one", seed=3, dtype="F32", **one)
    write_llama(folder / "two", seed=4, dtype="F32", noise_from=folder / "one", delta=0.05, **one)
    return folder


def read(folder: Path) -> tuple[Tensors, dict[str, str]]:
    with open_checkpoint(folder) as found:
        tensors = {n: np.array(found.values(n)).reshape(t.shape) for n, t in found.tensors.items()}
        return tensors, {n: t.dtype.name for n, t in found.tensors.items()}


def both(
    models: Path, folder: Path, recipe: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensors, Tensors]:
    """The tensors that nett and mergekit make of a recipe; names, shapes and types compared on the way."""
    monkeypatch.chdir(models)
    file = folder / "recipe.yml"
    file.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    run_recipe(file, out=folder / "nett", speak=False)
    assert MERGEKIT is not None
    done = subprocess.run(
        [MERGEKIT, str(file), str(folder / "mergekit"), "--no-copy-tokenizer", "--no-write-model-card"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ours, our_types = read(folder / "nett")
    theirs, their_types = read(folder / "mergekit")
    assert our_types == their_types
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    return ours, theirs


def furthest(ours: Tensors, theirs: Tensors, unit: float, leave_out: Tensors | None = None) -> float:
    """The largest difference, in units of the rounding of the larger of 1 and the value."""
    worst = 0.0
    for name, mine in ours.items():
        scale = np.maximum(1.0, np.abs(theirs[name])) * unit
        apart = np.abs(mine.astype(np.float64) - theirs[name]) / scale
        if leave_out is not None:
            apart = apart[~leave_out[name]]
        worst = max(worst, float(apart.max(initial=0.0)))
    return worst


def model(name: str, **parameters: Any) -> dict[str, Any]:
    return {"model": name, "parameters": parameters} if parameters else {"model": name}


GRADIENT = [0.1, "9e-1", 0.4]
FILTERED = [
    {"filter": "mlp.down", "value": [0.2, 1.3]},
    {"filter": "self_attn", "value": 0.9},
    {"value": [1, 0.5]},
]
CASES: dict[str, dict[str, Any]] = {
    "linear": {
        "merge_method": "linear",
        "models": [model("a", weight=GRADIENT), model("b", weight=FILTERED), model("c", weight="5e-1")],
        "dtype": "float32",
    },
    "linear, base as one more model, weights from the top": {
        "merge_method": "linear",
        "base_model": "base",
        "models": [model("a"), model("b", weight=[{"filter": "embed", "value": 2}])],
        "parameters": {"weight": FILTERED, "normalize": False},
    },
    "linear, bfloat16 as it is": {
        "merge_method": "linear",
        "models": [model("m", weight=0.3), model("n", weight=0.7)],
    },
    "linear, types mixed": {
        "merge_method": "linear",
        "models": [model("m", weight=0.3), model("h", weight=0.7)],
    },
    "linear, inputs rounded": {
        "merge_method": "linear",
        "models": [model("a", weight=0.3), model("b", weight=0.7)],
        "dtype": "bfloat16",
        "out_dtype": "float32",
    },
    "one layer, tied": {
        "merge_method": "linear",
        "models": [model("one", weight=[0.1, 0.7]), model("two", weight=[0.9, 0.3])],
        "parameters": {"normalize": [True, False]},
    },
    "slerp": {
        "merge_method": "slerp",
        "base_model": "base",
        "models": [model("a"), model("base")],
        "parameters": {"t": [{"filter": "self_attn", "value": [0, 0.5, 0.3, 1]}, {"value": [1, 0.25]}]},
        "dtype": "float32",
    },
    "slerp, far apart": {
        "merge_method": "slerp",
        "base_model": "one",
        "models": [model("far")],
        "parameters": {"t": [0.3, 0.8]},
    },
    "task arithmetic": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [model("a", weight=GRADIENT), model("b", weight=-0.4), model("c", weight=FILTERED)],
        "parameters": {"lambda": [0.5, 1.5], "normalize": [{"filter": "mlp", "value": True}], "int8_mask": True},
    },
    "passthrough": {
        "merge_method": "passthrough",
        "models": [model("a", scale=[{"filter": "o_proj", "value": [0, 1, 0.5]}, {"filter": "norm", "value": 2}])],
    },
    "dare linear, all kept": {
        "merge_method": "dare_linear",
        "base_model": "base",
        "models": [model("base"), model("a", weight=0.4), model("b", weight=GRADIENT, density=1)],
        "parameters": {"lambda": 0.8},
    },
    "dare ties, all kept": {
        "merge_method": "dare_ties",
        "base_model": "base",
        "models": [model("a", weight=0.4), model("b", weight=GRADIENT), model("c", weight=-0.3)],
        "parameters": {"normalize": True},
    },
    "ties": {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            model("a", weight=GRADIENT, density=[0.1, 1.0, 0.3]),
            model("b", weight=0.7, density=[{"filter": "mlp", "value": 0.5}]),
            model("c", weight=FILTERED),
        ],
        "parameters": {"lambda": 1.2, "density": 0.35},
        "dtype": "float32",
    },
    "ties, weights of both signs, sums": {
        "merge_method": "ties",
        "base_model": "base",
        "models": [model("base"), model("a", weight=1), model("b", weight=-0.6), model("c", weight=0.9)],
        "parameters": {"density": 0.4, "normalize": False, "rescale": False},
    },
    "ties, weights of both signs, means": {
        "merge_method": "ties",
        "base_model": "base",
        "models": [model("a", weight=1), model("b", weight=-0.6), model("c", weight=0.9)],
        "parameters": {"density": 0.4},
    },
}


@pytest.fixture(scope="module")
def far(models: Path) -> Path:
    """A model that is not near ``one``: the arc between the two is long."""
    return write_llama(models / "far", seed=9, layers=1, hidden=32, vocab=96, inter=64, dtype="F32", tied=True)


def at_threshold(models: Path, recipe: Mapping[str, Any]) -> Tensors:
    """Where some |delta| occurs more than once in its tensor: there, which one is trimmed is anyone's choice."""
    base, _ = read(models / "base")
    found = {name: np.zeros(values.shape, bool) for name, values in base.items()}
    for entry in recipe["models"]:
        if entry["model"] != "base":
            for name, values in read(models / entry["model"])[0].items():
                _, inverse, counts = np.unique(np.abs(values - base[name]), return_inverse=True, return_counts=True)
                found[name] |= (counts > 1)[inverse].reshape(values.shape)
    return found


@pytest.mark.parametrize("name", CASES)
def test_same_checkpoint(name: str, models: Path, far: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = CASES[name]
    ours, theirs = both(models, tmp_path, recipe, monkeypatch)
    ties = at_threshold(models, recipe) if recipe["merge_method"] == "ties" else None
    unit = UNIT.get(name, FLOAT32)
    worst = furthest(ours, theirs, unit, ties)
    left_out = sum(int(t.sum()) for t in ties.values()) if ties else 0
    total = sum(t.size for t in ours.values())
    print(f"{name}: furthest {worst:.3g} x {unit:.3g}; left out {left_out} of {total} as ties")
    assert worst <= (4.0 if unit == FLOAT32 else 1.0)
    assert left_out < 0.02 * total


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
    made = both(models, tmp_path, recipe, monkeypatch)
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
