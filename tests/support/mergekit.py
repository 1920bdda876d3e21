"""Recipes whose results mergekit is asked for, the models that they name, and how far two results may lie apart."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from nett.core.checkpoint import open_checkpoint
from nett.core.tiny import write_llama
from support.tensors import Array

FLOAT32, BFLOAT16 = 2.0**-23, 2.0**-7
# mergekit adds up in float32 here, but rounds the result to the inputs' type before out_dtype; nett does not.
UNIT = {"linear, bfloat16 as it is": BFLOAT16, "linear, inputs rounded": BFLOAT16}
# mergekit takes the angles in float32, nett in float64: of rows of four they are off by as much.
UNIT |= {"model stock": 16 * FLOAT32, "model stock, filter wise": 16 * FLOAT32}
SHAPE = {"layers": 4, "hidden": 32, "vocab": 96, "inter": 64}

Tensors = dict[str, Array]


def write_models(folder: Path, shape: Mapping[str, int]) -> Path:
    """Float32 models of several layers, so that sizes |delta| are distinct; m, h and n in narrower types; one layer,
    one, two and far, which is not near them."""
    full: dict[str, Any] = {**shape, "tied": False}
    write_llama(folder / "base", seed=1, dtype="F32", **full)
    for seed, name in enumerate(("a", "b", "c")):
        write_llama(folder / name, seed=10 + seed, dtype="F32", noise_from=folder / "base", delta=0.05, **full)
    for seed, (name, dtype) in enumerate((("m", "BF16"), ("n", "BF16"), ("h", "F16"))):
        write_llama(folder / name, seed=20 + seed, dtype=dtype, noise_from=folder / "base", delta=0.05, **full)
    one = full | {"layers": 1, "tied": True}
    write_llama(folder / "one", seed=3, dtype="F32", **one)
    write_llama(folder / "two", seed=4, dtype="F32", noise_from=folder / "one", delta=0.05, **one)
    write_llama(folder / "far", seed=9, dtype="F32", **one)
    return folder


def run_mergekit(executable: str, models: Path, recipe: Mapping[str, Any], out: Path) -> Path:
    """mergekit's own result, in ``out``."""
    file = out.with_suffix(".yml")
    file.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    done = subprocess.run(
        [executable, str(file), str(out), "--no-copy-tokenizer", "--no-write-model-card"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        cwd=models,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def read(folder: Path) -> tuple[Tensors, dict[str, str]]:
    with open_checkpoint(folder) as found:
        tensors = {n: np.array(found.values(n)).reshape(t.shape) for n, t in found.tensors.items()}
        return tensors, {n: t.dtype.name for n, t in found.tensors.items()}


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
    "breadcrumbs": {
        "merge_method": "breadcrumbs",
        "base_model": "base",
        "models": [model("a", weight=GRADIENT, density=0.6, gamma=0.1), model("b", weight=0.5, density=0.9)],
        "parameters": {"lambda": 1.1, "normalize": True, "rescale": True},
    },
    "breadcrumbs ties": {
        "merge_method": "breadcrumbs_ties",
        "base_model": "base",
        "models": [
            model("a", weight=0.5, density=0.7),
            model("b", weight=0.3, density=[0.9, 0.5]),
            model("c", weight=1),
        ],
        "parameters": {"gamma": 0.05},
    },
    "della, all kept": {
        "merge_method": "della",
        "base_model": "base",
        "models": [model("a", weight=0.4), model("b", weight=GRADIENT), model("c", weight=-0.3)],
    },
    "della linear, all kept": {
        "merge_method": "della_linear",
        "base_model": "base",
        "models": [model("a", weight=0.4), model("b", weight=GRADIENT, density=1)],
        "parameters": {"lambda": 0.8, "normalize": [True, False]},
    },
    "model stock": {
        "merge_method": "model_stock",
        "base_model": "base",
        "models": [model("a"), model("b"), model("c")],
    },
    "model stock, filter wise": {
        "merge_method": "model_stock",
        "base_model": "base",
        "models": [model("a"), model("b"), model("c")],
        "parameters": {"filter_wise": True},
    },
    "nuslerp": {
        "merge_method": "nuslerp",
        "models": [model("a", weight=GRADIENT), model("c", weight=0.6)],
    },
    "nuslerp, task vectors by row": {
        "merge_method": "nuslerp",
        "base_model": "base",
        "models": [model("a", weight=1), model("b", weight=0.6)],
        "parameters": {"nuslerp_flatten": False},
    },
    "nuslerp, by column": {
        "merge_method": "nuslerp",
        "models": [model("a", weight=1), model("c", weight=0.6)],
        "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    },
    "multislerp": {
        "merge_method": "multislerp",
        "models": [model("a", weight=0.2), model("b", weight=GRADIENT), model("c", weight=0.7)],
    },
    "multislerp, task vectors": {
        "merge_method": "multislerp",
        "base_model": "base",
        "models": [model("a", weight=0.2), model("b", weight=0.3), model("c", weight=0.7)],
        "parameters": {"normalize_weights": False},
    },
    "karcher": {
        "merge_method": "karcher",
        "models": [model("a"), model("b"), model("c")],
        "parameters": {"max_iter": 20, "tol": "1e-9"},
    },
    "nearswap": {
        "merge_method": "nearswap",
        "base_model": "base",
        "models": [model("a")],
        "parameters": {"t": [0.001, 0.01]},
    },
    "sce": {
        "merge_method": "sce",
        "base_model": "base",
        "models": [model("a"), model("b"), model("c")],
        "parameters": {"select_topk": [0.3, 1.0, 0.6]},
    },
    "ram": {
        "merge_method": "ram",
        "base_model": "base",
        "models": [model("a"), model("b"), model("c")],
        "parameters": {"epsilon": 0.01},
    },
    "ramplus_tl": {
        "merge_method": "ramplus_tl",
        "base_model": "base",
        "models": [model("a"), model("b"), model("c")],
        "parameters": {"epsilon": 0.01, "r": 0.3, "alpha": 0.9},
    },
    "arcee fusion": {
        "merge_method": "arcee_fusion",
        "base_model": "base",
        "models": [model("a")],
    },
}
