"""Recipes whose results mergekit is asked for, the models that they name, and how far two results may lie apart."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from nett.core.checkpoint import open_checkpoint
from nett.core.tiny import write_llama
from support.tensors import Array, write_tensors

FLOAT32, BFLOAT16 = 2.0**-23, 2.0**-7
# mergekit adds up in float32 here, but rounds the result to the inputs' type before out_dtype; nett does not.
UNIT = {"linear, bfloat16 as it is": BFLOAT16, "linear, inputs rounded": BFLOAT16}
# mergekit takes the angles in float32, nett in float64: of rows of four they are off by as much.
UNIT |= {"model stock": 16 * FLOAT32, "model stock, filter wise": 16 * FLOAT32}
SHAPE = {"layers": 4, "hidden": 32, "vocab": 96, "inter": 64}

Tensors = dict[str, Array]
Recipe = Mapping[str, Any] | list[dict[str, Any]]  # one document, or several


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
    write_t5(folder / "t5", seed=5)
    write_t5(folder / "t5-tuned", seed=6, near=folder / "t5")
    write_adapter(folder / "adapter", {"layers": shape["layers"], "hidden": shape["hidden"]})
    return folder


def write_t5(folder: Path, seed: int, near: Path | None = None) -> None:
    """An encoder-decoder: three stacks of names, of two and three layers."""
    rng = np.random.default_rng(seed)
    shapes = {"shared.weight": (12, 4), "lm_head.weight": (12, 4)}
    for stack, count in (("encoder", 2), ("decoder", 3)):
        for i in range(count):
            attentions = ["SelfAttention"] if stack == "encoder" else ["SelfAttention", "EncDecAttention"]
            for j, attention in enumerate(attentions):
                at = f"{stack}.block.{i}.layer.{j}"
                shapes |= {f"{at}.{attention}.{p}.weight": (4, 4) for p in "qkvo"} | {f"{at}.layer_norm.weight": (4,)}
                if not i and not j:
                    shapes[f"{at}.{attention}.relative_attention_bias.weight"] = (8, 2)
            at = f"{stack}.block.{i}.layer.{len(attentions)}"
            shapes |= {f"{at}.DenseReluDense.wi_0.weight": (6, 4), f"{at}.DenseReluDense.wi_1.weight": (6, 4)}
            shapes |= {f"{at}.DenseReluDense.wo.weight": (4, 6), f"{at}.layer_norm.weight": (4,)}
        shapes[f"{stack}.final_layer_norm.weight"] = (4,)
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    if near is not None:
        tensors = {n: read(near)[0][n] + np.float32(0.05) * a for n, a in tensors.items()}
    write_tensors(folder / "model.safetensors", tensors)
    config = {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 4, "d_kv": 2, "d_ff": 6,
        "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2, "vocab_size": 12, "tie_word_embeddings": False,
        "relative_attention_num_buckets": 8, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def write_adapter(folder: Path, shape: Mapping[str, int]) -> None:
    """A PEFT adapter of the Llamas: rank 2 on the output projections of the first layers."""
    rng, width = np.random.default_rng(30), shape["hidden"]
    factors = {}
    for i in range(shape["layers"] - 1):
        at = f"base_model.model.model.layers.{i}.self_attn.o_proj"
        factors[f"{at}.lora_A.weight"] = rng.standard_normal((2, width)).astype(np.float32) * np.float32(0.2)
        factors[f"{at}.lora_B.weight"] = rng.standard_normal((width, 2)).astype(np.float32) * np.float32(0.2)
    write_tensors(folder / "adapter_model.safetensors", factors)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 3, "target_modules": ["o_proj"],
        "base_model_name_or_path": "base", "bias": "none", "layers_to_transform": list(range(shape["layers"] - 1)),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def recipe_text(recipe: Recipe) -> str:
    """One document, or several."""
    if isinstance(recipe, list):
        return "---\n".join(yaml.safe_dump(dict(one), sort_keys=False) for one in recipe)
    return yaml.safe_dump(dict(recipe), sort_keys=False)


def run_mergekit(executable: str, models: Path, recipe: Recipe, out: Path) -> Path:
    """mergekit's own result, in ``out``; of a recipe of several documents, from mergekit-multi beside it."""
    file = out.with_suffix(".yml")
    file.write_text(recipe_text(recipe))
    if isinstance(recipe, list):
        multi = str(Path(executable).with_name("mergekit-multi"))
        words = [multi, str(file), "--out-path", str(out), "-I", str(out.with_suffix(".steps"))]
    else:
        words = [executable, str(file), str(out)]
    done = subprocess.run(
        [*words, "--no-copy-tokenizer", "--no-write-model-card", "--lora-merge-cache", str(out.with_suffix(".lora"))],
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
    for entry in recipe.get("models") or [source for one in recipe["slices"] for source in one["sources"]]:
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


def part(name: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    """A source of a slice."""
    return {"model": name, "layer_range": [start, stop]} | ({"parameters": parameters} if parameters else {})


CASES: dict[str, Any] = {
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
    "frankenmerge": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [part("a", 0, 3)]},
            {
                "sources": [
                    part(
                        "b", 1, 4, scale=[{"filter": "o_proj", "value": [0, 1]}, {"filter": "down_proj", "value": 0.5}]
                    )
                ]
            },
            {"sources": [part("a", 3, 4)], "parameters": {"scale": [{"filter": "norm", "value": 2}, {"value": 1}]}},
        ],
        "dtype": "float32",
    },
    "frankenmerge, filters under the names of the inputs": {
        "merge_method": "passthrough",
        "slices": [{"sources": [part("a", 2, 4)]}, {"sources": [part("c", 0, 2)]}],
        "parameters": {
            "scale": [{"filter": "layers.1.", "value": 3}, {"filter": "layers.2.", "value": [2, 5]}, {"value": 1}]
        },
    },
    "slices, gradients within each": {
        "merge_method": "linear",
        "slices": [
            {
                "sources": [part("a", 0, 3, weight=GRADIENT), part("b", 1, 4, weight=FILTERED)],
                "parameters": {"normalize": False},
            },
            {"sources": [part("b", 0, 2), part("c", 2, 4)], "parameters": {"weight": [0.2, 0.9]}},
            {"sources": [part("c", 3, 4), part("a", 3, 4, weight=[1, 2])]},
        ],
        "parameters": {"weight": 0.6},
    },
    "slices, slerp, filters under the name of the output": {
        "merge_method": "slerp",
        "base_model": "base",
        "slices": [
            {
                "sources": [part("base", 0, 2), part("a", 2, 4)],
                "parameters": {"t": [{"filter": "layers.1.", "value": 0.8}, {"value": [0.1, 0.4]}]},
            },
            {"sources": [part("b", 0, 3), part("c", 1, 4)], "base_model": "b"},
        ],
        "parameters": {"t": [{"filter": "layers.3.", "value": 0.7}, {"value": [0.2, 0.5, 0.9]}]},
    },
    "slices, ties": {
        "merge_method": "ties",
        "base_model": "base",
        "slices": [
            {
                "sources": [
                    part("base", 0, 2),
                    part("a", 0, 2, weight=1, density=[0.3, 0.8]),
                    part("b", 0, 2, weight=0.5),
                ]
            },
            {
                "sources": [part("a", 2, 4), part("base", 2, 4), part("c", 2, 4, density=0.5)],
                "parameters": {"weight": 0.7, "lambda": 1.3},
            },
        ],
        "parameters": {"density": 0.6},
    },
    "module, whole models": {
        "merge_method": "linear",
        "modules": {"default": {"models": [model("a", weight=GRADIENT), model("b")], "parameters": {"weight": 0.4}}},
        "parameters": {"weight": 7, "normalize": False},
    },
    "module, slices": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "modules": {
            "default": {
                "slices": [
                    {"sources": [part("base", 0, 2), part("a", 0, 2, weight=0.5)]},
                    {"sources": [part("base", 1, 3), part("b", 1, 3)], "parameters": {"lambda": 0.3}},
                ],
                "parameters": {"weight": [0.3, 1], "lambda": 0.9},
            }
        },
    },
    "modules of an encoder-decoder": {
        "merge_method": "linear",
        "modules": {
            "encoder": {
                "slices": [
                    {"sources": [part("t5", 0, 2, weight=0.3), part("t5-tuned", 0, 2)]},
                    {"sources": [part("t5", 1, 2)]},
                ]
            },
            "decoder": {
                "models": [model("t5", weight=GRADIENT), model("t5-tuned")],
                "parameters": {"normalize": False},
            },
            "shared": {"models": [model("t5-tuned"), model("t5")]},
        },
        "parameters": {"weight": [{"filter": "wi_0", "value": 0.2}, {"value": 0.8}]},
    },
    "adapter": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [model("base+adapter", weight=0.7), model("a", weight=0.5)],
    },
    "adapter, in slices and on the base": {
        "merge_method": "slerp",
        "base_model": "base+adapter",
        "slices": [
            {"sources": [part("base+adapter", 0, 2), part("a", 0, 2)]},
            {"sources": [part("base+adapter", 1, 4), part("b", 1, 4)]},
        ],
        "parameters": {"t": [0.2, 0.6]},
    },
    "several documents": [
        {"name": "early", "merge_method": "linear", "models": [model("a", weight=0.3), model("b", weight=0.7)]},
        {
            "merge_method": "ties",
            "base_model": "base",
            "models": [model("early", weight=1, density=0.5), model("late", weight=0.5)],
            "parameters": {"density": 0.8},
        },
        {
            "name": "late",
            "merge_method": "passthrough",
            "slices": [{"sources": [part("early", 0, 2)]}, {"sources": [part("c", 2, 4)]}],
            "dtype": "float32",
        },
    ],
    "out_dtype": {
        "merge_method": "slerp",
        "base_model": "base",
        "models": [model("a")],
        "parameters": {"t": 0.4},
        "dtype": "float32",
        "out_dtype": "float16",
    },
}
