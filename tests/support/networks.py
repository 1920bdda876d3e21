"""Small torch modules of the kinds whose symmetries are derived."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layers += [nn.Linear(a, b), *([nn.ReLU()] if i < len(widths) - 2 else [])]
    return nn.Sequential(*layers)


class Block(nn.Module):
    """Two convolutions and a shortcut: of its own weights, or a slice padded with zeros (He et al. 2016, option A)."""

    def __init__(self, before: int, after: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.pad = stride, (after - before) // 2
        self.short: nn.Module | None = None
        if stride != 1 and option == "B":
            self.short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.short is not None:
            x = self.short(x)
        elif self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class ResNet(nn.Module):
    """The CIFAR family: three stages of ``depth`` blocks."""

    def __init__(
        self, depth: int = 1, option: str = "A", widths: tuple[int, int, int] = (4, 8, 16), classes: int = 10
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(3, first, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)

        def stage(before: int, after: int, stride: int) -> nn.Module:
            blocks = [Block(before if not k else after, after, stride if not k else 1, option) for k in range(depth)]
            return nn.Sequential(*blocks)

        self.layer1, self.layer2, self.layer3 = stage(first, first, 1), stage(first, second, 2), stage(second, third, 2)
        self.linear = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


class Norms(nn.Module):
    """GroupNorm, flattened channels, LayerNorm and a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.gn1 = nn.Conv2d(1, 8, 3, 2, 1), nn.GroupNorm(2, 8)
        self.fc1, self.ln1 = nn.Linear(8 * 16, 12), nn.LayerNorm(12)
        self.fc2, self.ln2 = nn.Linear(12, 12), nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.gn1(self.conv1(x))).flatten(1)
        x = F.relu(self.ln1(self.fc1(x)))
        return self.head(self.ln2(x + self.fc2(x)))


class Dense(nn.Module):
    """Concatenations as in DenseNet, then a grouped, a depthwise and a pointwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.c0, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c1, self.bn2 = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(14)
        self.c2 = nn.Conv2d(14, 6, 3, padding=1)
        self.grouped = nn.Conv2d(20, 12, 3, groups=4)
        self.depthwise, self.pointwise = nn.Conv2d(12, 24, 3, groups=12), nn.Conv2d(24, 5, 1)
        self.fc = nn.Linear(5 * 4 * 4, 7)

    def forward(self, x: Tensor) -> Tensor:
        a = self.c0(x)
        b = torch.cat([a, self.c1(F.relu(self.bn1(a)))], 1)
        c = torch.cat([b, self.c2(F.relu(self.bn2(b)))], 1)
        return self.fc(torch.flatten(F.gelu(self.pointwise(F.relu(self.depthwise(self.grouped(c))))), 1))


class Odd(nn.Module):
    """Functional calls, a parameter of its own, a gate, chunks, and a sort that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 16), nn.Linear(8, 10), nn.Linear(10, 4)
        self.scale = nn.Parameter(torch.ones(8))
        self.mixed = nn.Parameter(torch.ones(10, 10))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, dim=-1)
        x = torch.sigmoid(a) * b * self.scale
        x = F.relu(F.linear(x, self.fc2.weight, self.fc2.bias)) @ self.mixed
        return self.fc3(torch.sort(x, dim=-1).values)


class Attending(nn.Module):
    """Tokens, attention, a residual stream and a feed-forward part with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(11, 12), nn.Parameter(torch.zeros(1, 5, 12))
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)
        self.up, self.down, self.glu = nn.Linear(12, 16), nn.Linear(8, 12), nn.GLU()
        self.head = nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.position
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(self.glu(self.up(self.norm2(x))))
        return self.head(x.mean(dim=1))
