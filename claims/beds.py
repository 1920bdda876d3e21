"""Beds for merging claims: one base, several fine-tunes of it, the data to judge them, the same for every claim.

A :class:`Bed` holds models as flat float32 arrays, tensors in the order of their names, so that a kernel merges whole
models at once. ``merge8`` is the bed of the real assets; :func:`claims.digits.digits_bed` trains one of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file
from torch.nn import functional as F

from nett.core.errors import NettError

Flat = np.ndarray
Rows = Mapping[str, np.ndarray]  # task -> which examples of a split
Forward = Callable[[Mapping[str, torch.Tensor], torch.Tensor, str], torch.Tensor]
BATCH = 512


@dataclass(frozen=True)
class Bed:
    """A base and its fine-tunes, one a task. ``data[task][split]`` is (inputs, labels)."""

    name: str
    size: str
    tasks: tuple[str, ...]
    layout: Mapping[str, tuple[int, ...]]  # tensor -> shape, by name
    base: Flat
    tuned: Mapping[str, Flat]
    data: Mapping[str, Mapping[str, tuple[torch.Tensor, torch.Tensor]]]
    forward: Forward

    @property
    def models(self) -> list[Flat]:
        return [self.tuned[t] for t in self.tasks]

    def of(self, tasks: Sequence[str], size: str) -> Bed:
        """The same bed with some of its tasks only."""
        return replace(self, tasks=tuple(tasks), size=size)

    def tensors(self, flat: Flat) -> dict[str, torch.Tensor]:
        """A flat model as named tensors."""
        found, at = {}, 0
        for name, shape in self.layout.items():
            size = int(np.prod(shape))
            found[name] = torch.from_numpy(np.ascontiguousarray(flat[at : at + size], dtype=np.float32).reshape(shape))
            at += size
        return found

    def flat(self, tensors: Mapping[str, torch.Tensor]) -> Flat:
        """Named tensors as a flat model."""
        return np.concatenate([tensors[name].detach().float().numpy().ravel() for name in self.layout])

    @torch.inference_mode()
    def correct(self, flat: Flat, task: str, split: str) -> np.ndarray:
        """Per example of a split, whether the model's answer is right."""
        tensors, (x, y) = self.tensors(flat), self.data[task][split]
        answers = [self.forward(tensors, x[i : i + BATCH], task).argmax(1) for i in range(0, len(x), BATCH)]
        return (torch.cat(answers) == y).numpy()

    def all_correct(self, flat: Flat, split: str) -> dict[str, np.ndarray]:
        """:meth:`correct` of one model on every task."""
        return {task: self.correct(flat, task, split) for task in self.tasks}

    def own_correct(self, flats: Sequence[Flat], split: str) -> dict[str, np.ndarray]:
        """:meth:`correct` of one model for each task, each on its own."""
        return {task: self.correct(flat, task, split) for task, flat in zip(self.tasks, flats, strict=True)}

    def write(self, folder: Path, dtype: torch.dtype) -> tuple[Path, list[Path]]:
        """Base and fine-tunes as safetensors files; returns their paths."""

        tuned = [self.write_one(folder, task, self.tuned[task], dtype) for task in self.tasks]
        return self.write_one(folder, "base", self.base, dtype), tuned

    def write_one(self, folder: Path, name: str, flat: Flat, dtype: torch.dtype) -> Path:
        """One model as a safetensors file; returns its path."""
        path = folder / f"{name}.safetensors"
        save_file({n: t.to(dtype) for n, t in self.tensors(flat).items()}, path)
        return path

    def read_one(self, folder: Path) -> Flat:
        """The model that lies in a folder, as a flat float32 array."""
        (file,) = folder.glob("*.safetensors")
        return self.flat(load_torch(file))


@dataclass(frozen=True)
class Case:
    """A bed at one size, and for each seed that uses it the validation examples that seed may tune on."""

    bed: Bed
    draws: Mapping[int, Rows]


def accuracy(correct: Mapping[str, np.ndarray], rows: Rows | None = None) -> float:
    """Mean over tasks of the accuracy, in percent; on the examples ``rows`` of each task, or all."""
    return 100 * float(np.mean([(c if rows is None else c[rows[t]]).mean() for t, c in correct.items()]))


def sampling_error(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray] | None = None) -> float:
    """Standard error of a mean accuracy, or of the paired difference of two, from the test sets' sizes; percent."""
    each = [a[t].astype(float) - (0 if b is None else b[t]) for t in a]
    return 100 * float(np.sqrt(sum(d.var() / len(d) for d in each)) / len(each))


def assets() -> Path | None:
    """The folder of the real assets, or None."""
    named = os.environ.get("NETT_ASSETS")
    return Path(named) if named else None


def why_no_merge8() -> str | None:
    """Why the bed merge8 cannot be used, or None."""
    folder = assets()
    if folder is None:
        return "NETT_ASSETS is not set"
    lacking = [p for p in ("models/merge8/base.safetensors", "data/tasks28/mnist.npz") if not (folder / p).is_file()]
    return f"NETT_ASSETS has no {lacking[0]}" if lacking else None


def merge8() -> Bed:
    """Eight real 28x28 tasks, a trunk of 473k parameters, frozen heads. Checked against its known accuracies."""
    import json

    folder = assets()
    if folder is None:
        raise NettError("NETT_ASSETS is not set")
    models = folder / "models" / "merge8"
    tasks = tuple(json.loads((models / "meta.json").read_text())["tasks"])
    base, heads = load_file(models / "base.safetensors"), load_file(models / "heads.safetensors")
    layout = {name: base[name].shape for name in sorted(base)}

    def read(name: str) -> Flat:
        tensors = load_file(models / f"{name}.safetensors")
        return np.concatenate([tensors[n].ravel() for n in layout])

    head = {name: torch.from_numpy(array) for name, array in heads.items()}

    def forward(p: Mapping[str, torch.Tensor], x: torch.Tensor, task: str) -> torch.Tensor:
        x = F.relu(F.group_norm(_conv(x, p, "conv1"), 4, p["gn1.weight"], p["gn1.bias"]))
        x = F.relu(F.group_norm(_conv(x, p, "conv2"), 4, p["gn2.weight"], p["gn2.bias"]))
        x = F.relu(_norm(_linear(x.flatten(1), p, "fc1"), p, "ln1"))
        return _linear(_norm(x + _linear(x, p, "fc2"), p, "ln2"), head, task)

    tuned = {t: read(f"task_{t}") for t in tasks}
    data = {t: _task28(folder / "data" / "tasks28" / f"{t}.npz") for t in tasks}
    bed = Bed("merge8", "8 tasks", tasks, layout, read("base"), tuned, data, forward)
    alone = accuracy(bed.own_correct(bed.models, "test"))
    average = accuracy(bed.all_correct(np.mean(bed.models, axis=0), "test"))
    if abs(alone - 79.8) > 0.15 or abs(average - 67.0) > 0.15:
        raise NettError(f"merge8 gives {alone:.2f} % alone and {average:.2f} % averaged; 79.8 and 67.0 are known")
    return bed


def _task28(file: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    with np.load(file) as held:
        x, y, split = held["x"], held["y"].astype(np.int64), held["split"]
    pixels = torch.from_numpy(x[:, None]).float() / 255 * 2 - 1
    return {s: (pixels[split == i], torch.from_numpy(y[split == i])) for i, s in ((1, "val"), (2, "test"))}


def _conv(x: torch.Tensor, p: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride=2, padding=1)


def _linear(x: torch.Tensor, p: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def _norm(x: torch.Tensor, p: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return F.layer_norm(x, (x.shape[-1],), p[f"{name}.weight"], p[f"{name}.bias"])


def merge8_cases(seeds: Sequence[int]) -> Iterator[Case]:
    """Four tasks drawn by the seed, then all eight; each seed tunes on its own half of the validation examples.

    Models and test examples are fixed, so this is all that a seed can vary here.
    """
    bed = merge8()
    draws = {}
    for seed in seeds:
        rng = np.random.default_rng([seed, 8])
        halves = {}
        for task in bed.tasks:
            count = len(bed.data[task]["val"][1])
            halves[task] = np.sort(rng.permutation(count)[: (count + 1) // 2])
        draws[seed] = halves
        four = sorted(rng.permutation(len(bed.tasks))[:4])
        yield Case(bed.of([bed.tasks[i] for i in four], "4 tasks"), {seed: halves})
    yield Case(bed, draws)
