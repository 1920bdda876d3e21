"""A bed that a claim trains itself from scikit-learn's digits: eight tasks, one base, eight real fine-tunes.

The recipe is that of merge8 in small: a base learns a little of all tasks (15 % of each training set), with one
head a task; then each task fine-tunes the trunk from that base on its own training set, its head frozen. All weights,
the split of the examples and the pixel orders depend on the seed; the width of the trunk is the size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from claims.beds import Bed, Case

WIDTHS = (64, 256, 1024)
BASE_SHARE = 0.15
BASE_STEPS, TUNE_EPOCHS, BATCH, RATE = 300, 15, 64, 1e-3
TUNE_RATE = RATE

Tensors = dict[str, torch.Tensor]
Change = Callable[[np.ndarray], np.ndarray]


def _tasks(seed: int) -> dict[str, tuple[Change, Change]]:
    """Task -> (what is done to images [n, 8, 8], which labels take part)."""
    rng = np.random.default_rng([seed, 64])
    orders = [rng.permutation(64) for _ in range(2)]

    def turned(quarters: int) -> Change:
        return lambda x: np.rot90(x, quarters, axes=(1, 2))

    def shuffled(order: np.ndarray) -> Change:
        return lambda x: x.reshape(len(x), 64)[:, order].reshape(x.shape)

    def every(y: np.ndarray) -> np.ndarray:
        return y >= 0

    found: dict[str, tuple[Change, Change]] = {f"turned{90 * q}": (turned(q), every) for q in range(4)}
    found |= {f"shuffled{i}": (shuffled(order), every) for i, order in enumerate(orders)}
    found["mirrored_low"] = (lambda x: x[:, :, ::-1], lambda y: y < 5)
    found["negative_high"] = (lambda x: 16 - x, lambda y: y >= 5)
    return found


def _data(seed: int) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """60 % training, 20 % validation, 20 % test; an image is in the same split for all tasks."""
    from sklearn.datasets import load_digits

    held = load_digits()
    images, labels = held.images, held.target
    place = np.random.default_rng([seed, 1797]).permutation(len(labels)) / len(labels)
    splits = {"train": place < 0.6, "val": (place >= 0.6) & (place < 0.8), "test": place >= 0.8}
    found = {}
    for task, (change, part) in _tasks(seed).items():
        pixels = np.ascontiguousarray(change(images)).reshape(len(images), 64).astype(np.float32) / 8 - 1
        found[task] = {
            name: (torch.from_numpy(pixels[rows & part(labels)]), torch.from_numpy(labels[rows & part(labels)]))
            for name, rows in splits.items()
        }
    return found


def _trunk(p: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    x = F.relu(
        F.layer_norm(F.linear(x, p["fc1.weight"], p["fc1.bias"]), p["ln1.bias"].shape, p["ln1.weight"], p["ln1.bias"])
    )
    y = F.linear(x, p["fc2.weight"], p["fc2.bias"])
    return F.layer_norm(x + y, p["ln2.bias"].shape, p["ln2.weight"], p["ln2.bias"])


def _start(width: int, tasks: Sequence[str], draw: torch.Generator) -> tuple[Tensors, Tensors]:
    """Fresh trunk and heads: uniform in +-1/sqrt(inputs)."""

    def uniform(out: int, into: int) -> torch.Tensor:
        return (torch.rand(out, into, generator=draw) * 2 - 1) / into**0.5

    trunk = {
        "fc1.bias": torch.zeros(width),
        "fc1.weight": uniform(width, 64),
        "fc2.bias": torch.zeros(width),
        "fc2.weight": uniform(width, width),
        "ln1.bias": torch.zeros(width),
        "ln1.weight": torch.ones(width),
        "ln2.bias": torch.zeros(width),
        "ln2.weight": torch.ones(width),
    }
    heads: Tensors = {}
    for task in tasks:
        heads |= {f"{task}.weight": uniform(10, width), f"{task}.bias": torch.zeros(10)}
    return trunk, heads


def _loss(trunk: Tensors, heads: Tensors, task: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(_trunk(trunk, x), heads[f"{task}.weight"], heads[f"{task}.bias"]), y)


def digits_bed(seed: int, width: int) -> Bed:
    """The bed of one seed at one width; the same arguments give the same bits on one machine."""
    data, draw = _data(seed), torch.Generator().manual_seed(1000 * seed + width)
    tasks = tuple(data)
    trunk, heads = _start(width, tasks, draw)
    for tensor in (*trunk.values(), *heads.values()):
        tensor.requires_grad_(True)
    adam = torch.optim.Adam([*trunk.values(), *heads.values()], lr=RATE)
    few = {t: int(len(data[t]["train"][1]) * BASE_SHARE) for t in tasks}
    for _ in range(BASE_STEPS):
        picks = {t: torch.randint(few[t], (16,), generator=draw) for t in tasks}
        losses = [_loss(trunk, heads, t, data[t]["train"][0][p], data[t]["train"][1][p]) for t, p in picks.items()]
        adam.zero_grad()
        torch.stack(losses).mean().backward()
        adam.step()
    heads = {n: h.detach() for n, h in heads.items()}
    base = {n: p.detach() for n, p in trunk.items()}
    tuned = {t: _fine_tune(base, heads, t, *data[t]["train"], draw) for t in tasks}

    def forward(p: Mapping[str, torch.Tensor], x: torch.Tensor, task: str) -> torch.Tensor:
        return F.linear(_trunk(p, x), heads[f"{task}.weight"], heads[f"{task}.bias"])

    layout = {name: tuple(base[name].shape) for name in sorted(base)}
    judged = {t: {s: data[t][s] for s in ("val", "test")} for t in tasks}
    empty = Bed("digits", f"width {width}", tasks, layout, np.empty(0), {}, judged, forward)
    flats = {t: empty.flat(p) for t, p in tuned.items()}
    return Bed("digits", f"width {width}", tasks, layout, empty.flat(base), flats, judged, forward)


def _fine_tune(
    base: Tensors, heads: Tensors, task: str, x: torch.Tensor, y: torch.Tensor, draw: torch.Generator
) -> Tensors:
    """The trunk, trained on one task from the base; the head stays as it is."""
    trunk = {n: p.clone().requires_grad_(True) for n, p in base.items()}
    adam = torch.optim.Adam(trunk.values(), lr=TUNE_RATE)
    for _ in range(TUNE_EPOCHS):
        for rows in torch.randperm(len(y), generator=draw).split(BATCH):
            adam.zero_grad()
            _loss(trunk, heads, task, x[rows], y[rows]).backward()
            adam.step()
    return {n: p.detach() for n, p in trunk.items()}


def digits_cases(seeds: Sequence[int], widths: Sequence[int] = WIDTHS) -> Iterator[Case]:
    """Every width with every seed; each has models of its own, and tunes on its whole validation split."""
    for width in widths:
        for seed in seeds:
            bed = digits_bed(seed, width)
            yield Case(bed, {seed: {t: np.arange(len(bed.data[t]["val"][1])) for t in bed.tasks}})
