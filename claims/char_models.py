"""Language models of characters: an LSTM of any width, its training, and what it costs to store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

EMBEDDED = 24
STEPS, ROWS, WINDOW = 400, 24, 40
VALUE = 4  # bytes of a number


class CharLSTM(nn.Module):
    """An embedding, one LSTM layer of ``hidden`` units, a linear layer on top."""

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, EMBEDDED)
        self.lstm = nn.LSTM(EMBEDDED, hidden, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.lstm(self.embedding(x))[0]))


def numbers(hidden: int, vocabulary: int) -> int:
    """Parameters of a :class:`CharLSTM`."""
    return vocabulary * EMBEDDED + 4 * hidden * (EMBEDDED + hidden + 2) + vocabulary * (hidden + 1)


def prunable_numbers(hidden: int, vocabulary: int) -> int:
    """Of these, the entries of matrices other than the embedding."""
    return 4 * hidden * (EMBEDDED + hidden) + vocabulary * hidden


def stored(hidden: int, vocabulary: int, sparsity: float) -> tuple[int, int]:
    """(numbers that are not zero, bytes): pruned matrices as a bitmap and their values in float32, the rest as it is."""
    matrices = prunable_numbers(hidden, vocabulary)
    rest = numbers(hidden, vocabulary) - matrices
    values = matrices - sum(int(sparsity * n + 0.5) for n in _matrices(hidden, vocabulary))
    bitmap = sum((n + 7) // 8 for n in _matrices(hidden, vocabulary)) if sparsity else 0
    return values + rest, VALUE * (values + rest) + bitmap


def _matrices(hidden: int, vocabulary: int) -> list[int]:
    return [4 * hidden * EMBEDDED, 4 * hidden * hidden, vocabulary * hidden]


def width_for(limit: int, vocabulary: int, size: Callable[[int], int]) -> int:
    """The widest dense network whose ``size(hidden)`` is at most ``limit``, but at least one unit."""
    return max((h for h in range(1, 1000) if size(h) <= limit), default=1)


def trained(
    text: Tensor,
    hidden: int,
    vocabulary: int,
    seed: int,
    rate: float,
    *,
    prune: Callable[[Any, Any], Any] | None = None,
) -> tuple[CharLSTM, Any]:
    """A network after ``STEPS`` steps of Adam with a falling learning rate; ``prune(model, optimizer)`` hangs a callback
    on the optimizer. Every network of a seed sees the same batches."""
    torch.manual_seed(seed)
    model = CharLSTM(hidden, vocabulary)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: max(0.1, 1 - t / STEPS))
    callback = prune(model, optimizer) if prune is not None else None
    draw = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        starts = torch.randint(0, len(text) - WINDOW - 1, (ROWS,), generator=draw)
        rows = text[starts[:, None] + torch.arange(WINDOW + 1)]
        optimizer.zero_grad()
        out = model(rows[:, :-1])
        F.cross_entropy(out.reshape(-1, vocabulary), rows[:, 1:].reshape(-1)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model, callback


@torch.no_grad()
def losses(model: CharLSTM, text: Tensor) -> np.ndarray:
    """Nats of each window of held-out text, the mean over its characters."""
    rows = text[: len(text) // (WINDOW + 1) * (WINDOW + 1)].reshape(-1, WINDOW + 1)
    out = model(rows[:, :-1])
    each = F.cross_entropy(out.reshape(-1, out.shape[-1]), rows[:, 1:].reshape(-1), reduction="none")
    return np.asarray(each.reshape(len(rows), -1).mean(1).double().numpy())
