"""Click-through models on MovieLens: will this user like that film? Fields, DeepFM and DCN, training, AUC.

A rating of 4 or more is a click. Fields: user, film, its genres together, its year, hour and weekday of the rating. Examples
are split at random by the seed, 80 % to train and 10 % each to validate and test; values that training never saw are one.
DeepFM: Guo et al. 2017, arXiv:1703.04247; DCN: Wang et al. 2017, arXiv:1708.05123, three cross layers.
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

NAME = "MovieLens"
BATCH, MOST_EPOCHS, PATIENCE = 1024, 12, 2
Split = tuple[torch.Tensor, torch.Tensor]  # rows int64 [n, fields], clicks float32 [n]


@dataclass(frozen=True)
class Clicks:
    """sizes: values of each field, the last for those that training never saw."""

    sizes: tuple[int, ...]
    train: Split
    val: Split
    test: Split

    def batches(self, draw: torch.Generator) -> Iterator[Split]:
        x, y = self.train
        for rows in torch.randperm(len(y), generator=draw).split(BATCH):
            yield x[rows], y[rows]


def clicks(seed: int, skipped: dict[str, str]) -> Clicks | None:
    """The data as this seed splits them; None where they are not."""
    root = os.environ.get("NETT_ASSETS")
    folder = Path(root or "") / "data" / "ctr"
    if root is None or not (folder / "ml_latest_small_ratings.csv.gz").is_file():
        skipped[NAME] = "NETT_ASSETS names no folder that holds it"
        return None
    films = {r["movieId"]: r for r in _rows(folder / "ml_latest_small_movies.csv.gz")}
    raw, liked = [], []
    for rating in _rows(folder / "ml_latest_small_ratings.csv.gz"):
        film, second = films[rating["movieId"]], int(rating["timestamp"])
        year = re.search(r"\((\d{4})\)\s*$", film["title"])
        days = second // 86400
        raw.append(
            (
                rating["userId"],
                rating["movieId"],
                film["genres"],
                year[1] if year else "",
                second // 3600 % 24,
                days % 7,
            )
        )
        liked.append(float(rating["rating"]) >= 4)
    place = np.random.default_rng([seed, 78]).permutation(len(raw)) / len(raw)
    train = place < 0.8
    codes, sizes = [], []
    for field in zip(*raw, strict=True):
        column = np.array([str(v) for v in field])
        known = np.unique(column[train])
        at = np.minimum(np.searchsorted(known, column), len(known) - 1)
        codes.append(np.where(known[at] == column, at, len(known)))
        sizes.append(len(known) + 1)
    x, y = torch.from_numpy(np.stack(codes, 1)), torch.tensor(liked, dtype=torch.float32)
    parts = [torch.from_numpy(m) for m in (train, (place >= 0.8) & (place < 0.9), place >= 0.9)]
    return Clicks(tuple(sizes), *((x[m], y[m]) for m in parts))


def _rows(file: Path) -> list[dict[str, str]]:
    with gzip.open(file) as raw:
        return list(csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8")))


class DeepFM(nn.Module):
    """Pairwise products of the fields' embeddings, a linear part and an MLP, summed."""

    def __init__(self, sizes: Sequence[int], dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(size, dim) for size in sizes)
        self.first = nn.ModuleList(nn.Embedding(size, 1) for size in sizes)
        self.mlp = _mlp(dim * len(sizes), widths, 1)
        _draw([*self.fields, *self.first])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        each = torch.stack([table(rows[:, i]) for i, table in enumerate(self.fields)], 1)
        linear = sum(table(rows[:, i])[:, 0] for i, table in enumerate(self.first))
        pairs = 0.5 * (each.sum(1).square() - each.square().sum(1)).sum(1)
        made: torch.Tensor = linear + pairs + self.mlp(each.flatten(1))[:, 0]
        return made


class DCN(nn.Module):
    """Three cross layers and an MLP side by side over the fields' embeddings."""

    def __init__(self, sizes: Sequence[int], dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(size, dim) for size in sizes)
        wide = dim * len(sizes)
        self.cross = nn.ModuleList(nn.Linear(wide, 1, bias=False) for _ in range(3))
        self.offsets = nn.Parameter(torch.zeros(3, wide))
        self.mlp = _mlp(wide, widths[:-1], widths[-1])
        self.last = nn.Linear(wide + widths[-1], 1)
        _draw(self.fields)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        first = torch.cat([table(rows[:, i]) for i, table in enumerate(self.fields)], 1)
        crossed = first
        for layer, offset in zip(self.cross, self.offsets, strict=True):
            crossed = first * layer(crossed) + offset + crossed
        made: torch.Tensor = self.last(torch.cat([crossed, F.relu(self.mlp(first))], 1))[:, 0]
        return made


def _draw(tables: Iterable[nn.Module]) -> None:
    for table in tables:
        for weight in table.parameters():
            nn.init.normal_(weight, std=0.05)


def _mlp(inputs: int, widths: Sequence[int], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def numbers(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def epoch(model: nn.Module, data: Clicks, rate: float, draw: torch.Generator, adam: Any = None) -> Any:
    """One pass over the training examples. Returns the optimizer."""
    adam = adam or torch.optim.Adam(model.parameters(), lr=rate, weight_decay=1e-6)
    model.train()
    for x, y in data.batches(draw):
        adam.zero_grad()
        F.binary_cross_entropy_with_logits(model(x), y).backward()
        adam.step()
    model.eval()
    return adam


def trained(model: nn.Module, data: Clicks, seed: int) -> nn.Module:
    """Until the AUC on validation examples has not risen for two epochs; the best of them."""
    draw, adam, best, kept, since = torch.Generator().manual_seed(seed), None, -1.0, copy.deepcopy(model), 0
    for _ in range(MOST_EPOCHS):
        adam = epoch(model, data, 1e-3, draw, adam)
        found = auc(scores(model, data.val), data.val[1])
        if found > best:
            best, kept, since = found, copy.deepcopy(model), 0
        else:
            since += 1
        if since == PATIENCE:
            break
    return kept.eval()


def scores(model: nn.Module, split: Split) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([model(x) for x in split[0].split(4096)]).double().numpy()


def auc(score: np.ndarray, clicked: torch.Tensor) -> float:
    """Percent: chance that a click is scored above what is none, ties counting half."""
    from scipy.stats import rankdata

    y = clicked.numpy().astype(bool)
    ranks, up = rankdata(score), int(y.sum())
    return 100 * float(ranks[y].sum() - up * (up + 1) / 2) / (up * (len(y) - up))


def auc_gap_error(one: np.ndarray, other: np.ndarray, clicked: torch.Tensor) -> float:
    """Standard error of the difference of two AUCs on the same examples, in percent (DeLong et al. 1988)."""
    y = clicked.numpy().astype(bool)
    parts = []
    for score in (one, other):
        up, down = score[y], score[~y]
        order_down, order_up = np.sort(down), np.sort(up)
        above = (np.searchsorted(order_down, up, "left") + np.searchsorted(order_down, up, "right")) / (2 * len(down))
        below = 1 - (np.searchsorted(order_up, down, "left") + np.searchsorted(order_up, down, "right")) / (2 * len(up))
        parts.append((above, below))
    (a, b), (c, d) = parts
    return 100 * float(np.sqrt(np.var(a - c, ddof=1) / len(a) + np.var(b - d, ddof=1) / len(b)))
