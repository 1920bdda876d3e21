"""Pairs of networks trained apart, from different starting points and for different tasks, with a head each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from claims.beds import assets
from nett.core.network import Network
from nett.core.symmetry import Symmetry, proved_symmetry

Tensors = dict[str, np.ndarray]
Data = tuple[np.ndarray, np.ndarray]
BATCH, RATE = 64, 2e-3
TASKS28 = ("mnist", "notmnist")
INPUTS = 1024  # training inputs that a merge sees, half of each task
TASKS28_TRAIN = 4000


class Cnn(nn.Module):
    """Three convolutions with BatchNorm, widths w, 2w and 2w, means over positions, a head."""

    def __init__(self, width: int, classes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width)
        self.conv3, self.bn3 = nn.Conv2d(2 * width, 2 * width, 3, 1, 1, bias=False), nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class Pair:
    """Two trained networks. ``data[task][split]`` is (inputs, labels); task k belongs to network k."""

    name: str
    size: str
    tasks: tuple[str, str]
    models: list[Tensors]
    symmetry: Symmetry
    network: Network  # with inputs of both tasks, for merges
    data: dict[str, dict[str, Data]]

    def correct(self, heads: Sequence[Any], split: str) -> dict[str, np.ndarray]:
        """Per example of each task, whether the network with that task's head (a module) is right."""
        found = {}
        for task, module in zip(self.tasks, heads, strict=True):
            x, y = self.data[task][split]
            with torch.inference_mode():
                answers = [module(torch.from_numpy(x[i : i + 512])).argmax(1).numpy() for i in range(0, len(x), 512)]
            found[task] = np.concatenate(answers) == y
        return found


def _trained(module: nn.Module, data: Data, epochs: int, seed: int) -> Tensors:
    torch.manual_seed(seed)
    x, y = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    adam = torch.optim.Adam(module.parameters(), lr=RATE)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(BATCH):
            if len(rows) > 1:
                adam.zero_grad()
                F.cross_entropy(module(x[rows]), y[rows]).backward()
                adam.step()
    module.eval()
    return {n: t.detach().numpy().copy() for n, t in module.state_dict().items() if t.is_floating_point()}


def pair(name: str, size: int, seed: int, stride: int, epochs: int, data: dict[str, dict[str, Data]]) -> Pair:
    """Train one network a task, each from a starting point of its own."""
    classes = max(int(y.max()) + 1 for splits in data.values() for _, y in splits.values())
    models = []
    for k, splits in enumerate(data.values()):
        torch.manual_seed(1000 * seed + 10 * size + k)
        models.append(_trained(Cnn(size, classes, stride), splits["train"], epochs, 77 * seed + k))
    module = Cnn(size, classes, stride).eval()
    example = torch.from_numpy(next(iter(data.values()))["val"][0][:2])
    symmetry, _ = proved_symmetry({n: t.shape for n, t in models[0].items()}, module=module, example=example)
    rng = np.random.default_rng(seed)
    drawn = [splits["train"][0] for splits in data.values()]
    drawn = [x[rng.permutation(len(x))[: INPUTS // 2]] for x in drawn]
    inputs = np.concatenate(drawn)
    network = Network(module, inputs[rng.permutation(len(inputs))], batch=256)
    tasks = tuple(data)
    return Pair(name, f"width {size}", (tasks[0], tasks[1]), models, symmetry, network, data)


def digits_pair(seed: int, width: int) -> Pair:
    """Digits 0 to 4 and 5 to 9; 60 % training, 20 % validation, 20 % test."""
    from sklearn.datasets import load_digits

    held = load_digits()
    x = (held.images[:, None] / 8 - 1).astype(np.float32)
    place = np.random.default_rng([seed, 16]).permutation(len(x)) / len(x)
    splits = {"train": place < 0.6, "val": (place >= 0.6) & (place < 0.8), "test": place >= 0.8}
    data = {}
    for task, low in (("0 to 4", 0), ("5 to 9", 5)):
        mine = (held.target >= low) & (held.target < low + 5)
        data[task] = {s: (x[mine & rows], held.target[mine & rows] - low) for s, rows in splits.items()}
    return pair("digits halves", width, seed, 1, 25, data)


def tasks28_pair(seed: int, width: int) -> Pair:
    """Two real tasks of 28 x 28 pixels, some thousand training examples of each, drawn by the seed."""
    folder = assets()
    assert folder is not None
    data = {}
    for k, task in enumerate(TASKS28):
        with np.load(folder / "data" / "tasks28" / f"{task}.npz") as held:
            x, y, split = held["x"][:, None], held["y"].astype(np.int64), held["split"]
        rng = np.random.default_rng([seed, k, 28])
        found = {}
        for name, number, most in (("train", 0, TASKS28_TRAIN), ("val", 1, 1000), ("test", 2, 2000)):
            rows = np.flatnonzero(split == number)
            rows = np.sort(rng.permutation(rows)[:most] if name == "train" else rows[:most])
            found[name] = ((x[rows].astype(np.float32) / 127.5 - 1), y[rows])
        data[task] = found
    return pair("mnist and notmnist", width, seed, 2, 6, data)


def why_no_tasks28() -> str | None:
    """Why the bed of real tasks cannot be used, or None."""
    folder = assets()
    if folder is None:
        return "NETT_ASSETS is not set"
    lacking = [t for t in TASKS28 if not (folder / "data" / "tasks28" / f"{t}.npz").is_file()]
    return f"NETT_ASSETS has no data/tasks28/{lacking[0]}.npz" if lacking else None


def all_pairs(seeds: Sequence[int], skipped: dict[str, str], widths: Sequence[int] = (8, 16)) -> Iterator[Pair]:
    """Both beds at all sizes; notes in ``skipped`` why one cannot be used."""
    for width in widths:
        for seed in seeds:
            yield digits_pair(seed, width)
    why = why_no_tasks28()
    if why is not None:
        skipped["mnist and notmnist"] = why
        return
    for width in widths:
        for seed in seeds:
            yield tasks28_pair(seed, width)
