"""Families of models on disk, and TIES written from its paper in plain NumPy: what several method tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from support.cli import nett
from support.tensors import Array, flat, read_tensors, rounded, unflat, write_tensors

Model = dict[str, Array]
SHAPES = {"embed.weight": (23, 8), "layers.0.w": (16, 17), "layers.1.w": (16, 17), "norm": (19,), "bias": (1,)}
MIXED = (
    {"embed.weight": "BF16", "layers.0.w": "F32", "layers.1.w": "F16", "norm": "F32", "bias": "BF16"},
    "F32",
    "BF16",
    {"embed.weight": "F16", "layers.0.w": "BF16", "layers.1.w": "F32", "norm": "F32", "bias": "F32"},
)
STORED = {"f32": ("F32",) * 4, "bf16": ("BF16",) * 4, "f16": ("F16",) * 4, "mixed": MIXED}


class Family(NamedTuple):
    """A base and its fine-tunes: where they lie, and what stands in the files, as float32."""

    base_path: str
    paths: list[str]
    base: Model
    tuned: list[Model]
    stored: Mapping[str, str]  # tensor -> element type of the base, which the output takes

    def merge(self, method: str, *words: str, models: Sequence[int] | None = None, base: bool = True) -> Model:
        """``nett merge METHOD`` over this family; the tensors that it wrote."""
        out = Path(self.base_path).parent / f"out-{len(list(Path(self.base_path).parent.iterdir()))}"
        chosen = self.paths if models is None else [self.paths[i] for i in models]
        ground = ("--base", self.base_path) if base else ()
        nett("merge", method, *chosen, *ground, "--out", str(out), "--no-speak", *words).succeeded()
        return read_tensors(out)

    def as_stored(self, tensors: Mapping[str, Array]) -> Model:
        """``tensors`` rounded to the output's element types."""
        return {n: rounded(a, self.stored[n]).astype(np.float32) for n, a in tensors.items()}


def family(folder: Path, stored: str = "f32", *, count: int = 3, seed: int = 0, grid: bool = False) -> Family:
    """Write a family. ``grid``: values on a coarse dyadic grid, so that entries tie and float32 sums are exact."""
    rng = np.random.default_rng(seed)
    kinds = STORED[stored]
    paths, models = [], []
    base: Model = {}
    for i in range(count + 1):
        made: Model = {}
        for name, shape in SHAPES.items():
            if grid:
                step = rng.integers(-6, 7, shape) / 64 * (rng.random(shape) < 0.6)
                start = rng.integers(-64, 65, shape) / 32
            else:
                step, start = rng.normal(size=shape) * 0.02, rng.normal(size=shape)
            made[name] = np.asarray(start if i == 0 else base[name] + step, np.float32)
        base = made if i == 0 else base
        kind = kinds[i % len(kinds)]
        types = {n: kind if isinstance(kind, str) else kind[n] for n in SHAPES}
        path = folder / ("base" if i == 0 else f"m{i}")
        write_tensors(path / "model.safetensors", made, types)
        paths.append(str(path))
        models.append({n: rounded(a, types[n]).astype(np.float32) for n, a in made.items()})
    first = kinds[0]
    types = {n: first if isinstance(first, str) else first[n] for n in SHAPES}
    return Family(paths[0], paths[1:], models[0], models[1:], types)


def assert_same(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Bit for bit, with the tensor's name and the number of differences where not."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        now = found[name].astype(values.dtype)
        assert now.shape == values.shape
        differ = np.flatnonzero((now != values).ravel())
        assert not differ.size, (name, differ.size, now.ravel()[differ[:3]], values.ravel()[differ[:3]])


def tensor_by_tensor(function: Callable[[Array, list[Array]], Array], base: Model, tuned: Sequence[Model]) -> Model:
    return {n: function(a.ravel(), [m[n].ravel() for m in tuned]).reshape(a.shape) for n, a in base.items()}


def whole_model(function: Callable[[Array, list[Array]], Array], base: Model, tuned: Sequence[Model]) -> Model:
    """``function`` over all parameters as one vector, tensors in the order of their names."""
    return unflat(function(flat(base), [flat(m) for m in tuned]), base)


def trim_all(tau: Array, density: float) -> Array:
    """P10, as its authors' code has it: entries not below the k-th smallest magnitude, k = d - int(d * density)."""
    if density >= 1:
        return tau
    k = tau.size - int(tau.size * density)
    threshold = np.partition(np.abs(tau), k - 1)[k - 1]
    return np.where(np.abs(tau) >= threshold, tau, tau.dtype.type(0))


def trim_exact(tau: Array, density: float) -> Array:
    """Exactly max(1, int(d * density)) entries, the first ones among equals; none at density 0."""
    if density <= 0:
        return np.zeros_like(tau)
    kept = np.argsort(-np.abs(tau), kind="stable")[: max(1, int(tau.size * density))]
    out = np.zeros_like(tau)
    out[kept] = tau[kept]
    return out


def elect(
    trimmed: Array,
    weights: Sequence[float],
    *,
    weight_in_election: bool = False,
    zero_sign: str = "majority",
    normalize: bool = True,
) -> Array:
    """P10, algorithm 1, steps 2 and 3, for ``trimmed`` of shape [models, parameters]."""
    w = np.asarray(weights, trimmed.dtype)[:, None]
    votes = w * trimmed if weight_in_election else trimmed
    sign = np.sign(votes.sum(axis=0))
    if zero_sign == "majority":
        majority = np.sign(np.sign(sign).astype(np.int64).sum())
    else:
        majority = 1
    sign = np.where(sign == 0, majority, sign)
    agrees = np.where(sign > 0, votes > 0, votes < 0)
    total = (w * np.where(agrees, trimmed, 0)).sum(axis=0)
    divisor = (w * agrees).sum(axis=0)
    return np.where(divisor != 0, total / np.where(divisor == 0, 1, divisor), total) if normalize else total


def ties_reference(base: Model, tuned: Sequence[Model], **given: Any) -> Model:
    """TIES-Merging with nett's options, written from the paper and the authors' published rule."""
    options = {"density": 0.2, "scale": 1.0, "scope": "model", "tie_policy": "all", "weight": 1.0} | given
    trim = trim_all if options["tie_policy"] == "all" else trim_exact
    count = len(tuned)
    densities = options["density"] if isinstance(options["density"], list) else [options["density"]] * count
    weights = options["weight"] if isinstance(options["weight"], list) else [options["weight"]] * count
    how = {k: v for k, v in options.items() if k in ("weight_in_election", "zero_sign", "normalize")}

    def merge(ground: Array, models: list[Array]) -> Array:
        trimmed = np.stack([trim(m - ground, d) for m, d in zip(models, densities, strict=True)])
        return ground + np.float32(options["scale"]) * elect(trimmed, weights, **how)

    return (whole_model if options["scope"] == "model" else tensor_by_tensor)(merge, base, tuned)


def multi_task_vector(
    base: Model, tuned: Sequence[Model], over: str = "task_arithmetic", density: float = 0.2
) -> Model:
    """P04, section 4.1: the sum of the task vectors, or the sum of what TIES trims and elects."""

    def vector(ground: Array, models: list[Array]) -> Array:
        taus = [m - ground for m in models]
        if over == "task_arithmetic":
            return np.asarray(sum(taus[1:], start=taus[0]))
        return elect(np.stack([trim_all(t, density) for t in taus]), [1.0] * len(taus), normalize=False)

    return whole_model(vector, base, tuned)


def task_masks(base: Model, tuned: Sequence[Model], vector: Model, lambdas: Sequence[float]) -> list[Model]:
    """P04, equation 4: |tau_t| > lambda_t |tau_MT - tau_t|, strictly."""
    found = []
    for model, strictness in zip(tuned, lambdas, strict=True):
        masks = {}
        for name, ground in base.items():
            tau = model[name] - ground
            masks[name] = np.abs(tau) > tau.dtype.type(strictness) * np.abs(vector[name] - tau)
        found.append(masks)
    return found
