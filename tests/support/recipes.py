"""Recipes for tests: a family of layered models, and mergekit's rules of lookup written once more, from its docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from support.tensors import Array, write_tensors

LAYERS = 4
NAMES = {
    "model.embed_tokens.weight": (12, 4), "model.norm.weight": (4,), "lm_head.weight": (12, 4),
    **{f"model.layers.{i}.{r}.weight": s for i in range(LAYERS)
       for r, s in (("mlp.down_proj", (4, 6)), ("self_attn.q_proj", (4, 4)), ("input_layernorm", (4,)))},
}  # fmt: skip
Model = dict[str, Array]


def write_family(folder: Path, count: int = 3) -> dict[str, Model]:
    """base, a, b, c: float32, all |delta| distinct. Name -> tensors; each in a folder of its name."""
    rng = np.random.default_rng(0)
    base = {n: rng.standard_normal(s).astype(np.float32) for n, s in NAMES.items()}
    models = {"base": base}
    for name in "abc"[:count]:
        models[name] = {
            n: a + np.float32(0.1) * rng.standard_normal(a.shape).astype(np.float32) for n, a in base.items()
        }
    for name, tensors in models.items():
        write_tensors(folder / name / "model.safetensors", tensors)
    return models


def write_recipe(file: Path, recipe: Mapping[str, Any] | str) -> Path:
    file.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(dict(recipe), sort_keys=False))
    return file


def depth(tensor: str) -> float:
    """t = layer / (layers - 1); what stands outside the layers has t = 0."""
    parts = tensor.split(".")
    numbers = [int(p) for p in parts if p.isdigit()]
    return numbers[0] / (LAYERS - 1) if numbers else 0.0


def number(value: Any) -> Any:
    """YAML's strings that are numbers, as numbers."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def at(setting: Any, t: float) -> Any:
    """A value, or a gradient at t: numbers interpolated, everything else by position; None for an empty list."""
    if not isinstance(setting, list):
        return number(setting)
    if not setting:
        return None
    values = [number(v) for v in setting]
    if any(isinstance(v, bool | str) for v in values):
        return values[int(t * (len(values) - 1))]
    return float(np.interp(t * (len(values) - 1), range(len(values)), values))


def resolved(name: str, tensor: str, scopes: Sequence[Mapping[str, Any] | None], default: Any = None) -> Any:
    """The first scope that has a value for the tensor: the model's own parameters, then the recipe's."""
    for scope in scopes:
        if not scope or name not in scope:
            continue
        setting = scope[name]
        conditions = [setting] if isinstance(setting, Mapping) else setting
        if isinstance(conditions, list) and conditions and isinstance(conditions[0], Mapping):
            fitting = [c for c in conditions if c.get("filter") in (None, "*") or c["filter"] in tensor]
            setting = fitting[0]["value"] if fitting else []
        value = at(setting, depth(tensor))
        if value is not None:
            return value
    return default
