"""Networks that are pruned while they train: a small ResNet on scikit-learn's digits, a small Llama on characters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from claims.beds import assets

DIGITS, LLAMA = "digits ResNet", "Shakespeare Llama"
CHANNELS, HIDDEN = (8, 16), (24, 48)
STEPS, BATCH, WINDOW = 160, 64, 33


@dataclass(frozen=True)
class Bed:
    """A network to be trained and the examples it is trained, tuned and judged on.

    make: seed -> a fresh network. batches: (seed, steps) -> (inputs, labels), the same for all ways. loss and right:
    of the network's outputs; right is one truth value an answer.
    """

    name: str
    size: str
    make: Callable[[int], Any]
    batches: Callable[[int, int], Iterator[tuple[Tensor, Tensor]]]
    splits: dict[str, tuple[Tensor, Tensor]]
    logits: Callable[[Any, Tensor], Tensor]
    steps: int
    rate: float

    @property
    def example(self) -> Any:
        x = self.splits["val"][0][:2]
        return {"input_ids": x, "return_dict": True} if self.name == LLAMA else x

    def loss(self, network: Any, x: Tensor, y: Tensor) -> Tensor:
        out = self.logits(network, x)
        return F.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1))

    @torch.no_grad()
    def right(self, network: Any, split: str) -> np.ndarray:
        """Per answer of a split, whether it is right, in evaluation mode."""
        network.eval()
        x, y = self.splits[split]
        found = torch.cat([self.logits(network, rows).argmax(-1) for rows in x.split(256)])
        network.train()
        return np.asarray((found == y).reshape(-1).numpy())

    @torch.no_grad()
    def outputs(self, network: Any) -> Tensor:
        network.eval()
        return self.logits(network, self.splits["val"][0][:64])


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Any) -> Any:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.short(x))


class ResNet(nn.Module):
    """A convolution and three residual blocks with BatchNorm, of c, c, 2c and 2c channels."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)
        self.blocks = nn.Sequential(_Block(c, c, 1), _Block(c, 2 * c, 2), _Block(2 * c, 2 * c, 1))
        self.head = nn.Linear(2 * c, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.blocks(F.relu(self.bn(self.conv(x)))).mean((2, 3)))


def digits_bed(channels: int) -> Bed:
    """60 % of the images train, 15 % choose, 25 % judge."""
    from sklearn.datasets import load_digits

    held = load_digits()
    x = torch.from_numpy(held.images.astype(np.float32))[:, None] / 8 - 1
    y = torch.from_numpy(held.target.astype(np.int64))
    place = np.random.default_rng(1797).permutation(len(y)) / len(y)
    train = place < 0.6
    splits = {"val": (place >= 0.6) & (place < 0.75), "test": place >= 0.75}

    def batches(seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        draw = torch.Generator().manual_seed(seed)
        rows = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(rows) < BATCH:
                rows = torch.randperm(int(train.sum()), generator=draw)
            yield x[train][rows[:BATCH]], y[train][rows[:BATCH]]
            rows = rows[BATCH:]

    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        return ResNet(channels)

    return Bed(
        DIGITS, f"width {channels}", make, batches, {k: (x[m], y[m]) for k, m in splits.items()},
        lambda network, rows: network(rows), STEPS, 5e-3,
    )  # fmt: skip


def llama_bed(hidden: int, text: Tensor) -> Bed:
    """Two layers, six heads on three KV heads; the last tenths of the text choose and judge."""
    from transformers import LlamaConfig, LlamaForCausalLM

    n = len(text)
    train = text[: int(0.8 * n)]

    def cut(part: Tensor) -> tuple[Tensor, Tensor]:
        windows = part[: len(part) // WINDOW * WINDOW].reshape(-1, WINDOW)[:400]
        return windows[:, :-1], windows[:, 1:]

    def batches(seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        draw = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            starts = torch.randint(0, len(train) - WINDOW, (16,), generator=draw)
            rows = train[starts[:, None] + torch.arange(WINDOW)]
            yield rows[:, :-1], rows[:, 1:]

    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        config = LlamaConfig(
            hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=3, vocab_size=int(text.max()) + 1, max_position_embeddings=64, use_cache=False,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    splits = {"val": cut(text[int(0.8 * n) : int(0.9 * n)]), "test": cut(text[int(0.9 * n) :])}
    return Bed(
        LLAMA, f"width {hidden}", make, batches, splits,
        lambda network, rows: network(input_ids=rows).logits, STEPS, 5e-3,
    )  # fmt: skip


def characters() -> Tensor | None:
    """Tinyshakespeare as numbers of characters; None without the assets."""
    folder = assets()
    if folder is None:
        return None
    text = (folder / "data" / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    known = {c: i for i, c in enumerate(sorted(set(text)))}
    return torch.tensor([known[c] for c in text])


def all_beds(skipped: dict[str, str], sizes: Sequence[int] = (0, 1)) -> list[Bed]:
    found = [digits_bed(CHANNELS[i]) for i in sizes]
    text = characters()
    if text is None:
        skipped[LLAMA] = "NETT_ASSETS is not set"
        return found
    return [*found, *(llama_bed(HIDDEN[i], text) for i in sizes)]
