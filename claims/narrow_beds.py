"""Single networks for claims on narrowing: trained here on scikit-learn's digits, and the CIFAR-10 ResNets of the assets."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from claims.beds import assets
from claims.narrowing import Subject

WIDTHS = {"digits MLP": (64, 256, 1024), "digits CNN": (64, 256)}
DEPTHS = (20, 32)
EPOCHS, BATCH, RATE = 15, 64, 1e-3
IMAGES = 600  # of the 2,000; half to choose by, half to judge


def mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def cnn(width: int) -> nn.Module:
    """Two convolutions with BatchNorm of width / 4 and width / 2 channels, and a hidden layer of ``width``."""
    one, two = width // 4, width // 2
    return nn.Sequential(
        nn.Conv2d(1, one, 3, padding=1, bias=False), nn.BatchNorm2d(one), nn.ReLU(),
        nn.Conv2d(one, two, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(two), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(4 * two, width), nn.ReLU(), nn.Linear(width, 10),
    )  # fmt: skip


def digits_networks(seeds: Sequence[int]) -> Iterator[Subject]:
    """60 % of the images train, 20 % choose, 20 % judge."""
    from sklearn.datasets import load_digits

    held = load_digits()
    x = torch.from_numpy(held.images.astype(np.float32))[:, None] / 8 - 1
    y = torch.from_numpy(held.target.astype(np.int64))
    for bed, widths in WIDTHS.items():
        for width in widths:
            for seed in seeds:
                place = np.random.default_rng([seed, 1797]).permutation(len(y)) / len(y)
                train, val, test = place < 0.6, (place >= 0.6) & (place < 0.8), place >= 0.8
                torch.manual_seed(1000 * seed + width)
                module = mlp(width) if bed.endswith("MLP") else cnn(width)
                _train(module, x[train], y[train])
                yield Subject(bed, f"width {width}", seed, module, (x[val], y[val]), (x[test], y[test]))


def _train(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    adam = torch.optim.Adam(module.parameters(), lr=RATE)
    module.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(y)).split(BATCH):
            adam.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            adam.step()
    module.eval()


class _Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.pad = (2 if after > before else 1), (after - before) // 2
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class ResNet(nn.Module):
    """He et al.'s small family for CIFAR-10: 6n + 2 layers, shortcuts without weights."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        each = (depth - 2) // 6
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)

        def stage(before: int, after: int) -> nn.Module:
            return nn.Sequential(*[_Block(after if k else before, after) for k in range(each)])

        self.layer1, self.layer2, self.layer3 = stage(16, 16), stage(16, 32), stage(32, 64)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, 8).flatten(1))


def residual_networks(seeds: Sequence[int], skipped: dict[str, str]) -> Iterator[Subject]:
    """Trained networks are fixed: a seed draws the images that choose and those that judge."""
    folder = assets()
    if folder is None:
        skipped["CIFAR-10 ResNets"] = "NETT_ASSETS is not set"
        return
    try:
        import PIL  # noqa: F401
    except ImportError:
        skipped["CIFAR-10 ResNets"] = "the Python package 'pillow', which decodes the images, is not installed"
        return
    x, y = _images(folder / "data" / "cifar10_jpg" / "cifar10_test2000_jpg.zip")
    for depth in DEPTHS:
        module = ResNet(depth)
        module.load_state_dict(
            load_file(folder / "models" / "resnet_cifar10" / f"resnet{depth}.safetensors"), strict=False
        )
        module.eval()
        for seed in seeds:
            drawn = np.random.default_rng([seed, 2000]).permutation(len(y))[:IMAGES]
            val, test = drawn[: IMAGES // 2], drawn[IMAGES // 2 :]
            yield Subject("CIFAR-10 ResNets", f"depth {depth}", seed, module, (x[val], y[val]), (x[test], y[test]))


def _images(file: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The images as the networks were trained on them: channel by channel less the mean, over the deviation."""
    from PIL import Image

    mean, deviation = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    pixels, labels = [], []
    with zipfile.ZipFile(file) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith((".jpg", ".jpeg")))
        classes = sorted({n.rsplit("/", 2)[-2] for n in names})
        for name in names:
            pixels.append(np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"), np.float32) / 255)
            labels.append(classes.index(name.rsplit("/", 2)[-2]))
    x = ((np.stack(pixels) - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(x)), torch.tensor(labels)
