"""Beds of networks of one architecture that were trained apart: other starting weights, other order of the examples.

``digits`` and ``digits_resnet`` are scikit-learn's digits, ``mnist`` the real task of the assets' ``tasks28``. A size is
the width of the hidden layers. Everything depends on the seed; each network of a seed on its number too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from claims.beds import assets
from nett.core.network import Network
from nett.core.symmetry import Symmetry, proved_symmetry

Tensors = dict[str, np.ndarray]


class Residual(nn.Module):
    """Two convolutions with BatchNorm; the shortcut is a slice padded with zeros where the width doubles."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.pad = (1, 0) if before == after else (2, (after - before) // 2)
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x if self.stride == 1 else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + short)


def resnet(width: int) -> nn.Module:
    """Three residual blocks of widths w, 2w and 4w on 8x8 images."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        Residual(width, width), Residual(width, 2 * width), Residual(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10),
    )  # fmt: skip


def mlp(inputs: int) -> Callable[[int], nn.Module]:
    """Three hidden layers."""
    return lambda width: nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Networks of one seed on one bed. ``train`` and ``test`` run any weights on their examples."""

    bed: str
    size: str
    seed: int
    models: Sequence[Tensors]
    symmetry: Symmetry
    train: Network
    test: Network


@dataclass(frozen=True)
class Bed:
    """What is trained: sizes, the module of a width, examples of a seed, epochs."""

    name: str
    widths: tuple[int, ...]
    module: Callable[[int], nn.Module]
    data: Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
    epochs: int
    count: int = 2  # networks of a seed


def _digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """60 % to train on, 40 % to test on."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng([seed, 71]).permutation(len(y))
    x, y, cut = x[order].astype(np.float32) / 16, y[order], int(0.6 * len(y))
    return x[:cut], y[:cut], x[cut:], y[cut:]


def _mnist(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The task's own training and test examples."""
    folder = assets()
    assert folder is not None
    held = np.load(folder / "data" / "tasks28" / "mnist.npz")
    x, y = held["x"].reshape(-1, 784).astype(np.float32) / 255, held["y"].astype(np.int64)
    train, test = held["split"] == 0, held["split"] == 2
    return x[train], y[train], x[test], y[test]


def beds(skipped: dict[str, str]) -> Iterator[Bed]:
    """All beds that there are here; why one is left out goes into ``skipped``."""
    yield Bed("digits", (16, 64, 256), mlp(64), _digits, 40, 3)
    yield Bed("digits_resnet", (4, 16), resnet, _digits, 15)
    folder = assets()
    if folder is None or not (folder / "data" / "tasks28" / "mnist.npz").is_file():
        skipped["mnist"] = "NETT_ASSETS names no folder with data/tasks28/mnist.npz"
    else:
        yield Bed("mnist", (32, 128, 512), mlp(784), _mnist, 10, 3)


def trained(bed: Bed, width: int, seed: int) -> Pair:
    """The networks of one seed, trained with Adam at 1e-3 in batches of 64."""
    x, y, x_test, y_test = bed.data(seed)
    given, wanted = torch.from_numpy(x), torch.from_numpy(y)
    models = []
    for number in range(bed.count):
        torch.manual_seed(1000 * seed + number)
        module = bed.module(width)
        adam = torch.optim.Adam(module.parameters(), lr=1e-3)
        for _ in range(bed.epochs):
            for rows in torch.randperm(len(y)).split(64):
                adam.zero_grad()
                F.cross_entropy(module(given[rows]), wanted[rows]).backward()
                adam.step()
        models.append({n: t.detach().numpy() for n, t in module.state_dict().items() if t.is_floating_point()})
    module = bed.module(width)
    shapes = {n: tuple(t.shape) for n, t in module.state_dict().items()}
    symmetry, _ = proved_symmetry(shapes, module=module, example=given[:2])
    train, test = Network(module, x, y, batch=1024), Network(module, x_test, y_test, batch=4096)
    return Pair(bed.name, f"width {width}", seed, models, symmetry.only(models[0]), train, test)
