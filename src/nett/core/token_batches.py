"""Token windows to train on: checked, drawn in an order that a seed fixes, and the loss on them."""

from __future__ import annotations

from collections.abc import Iterator
from math import cos, pi
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nett.core.errors import NettError, Refused


def checked(model: Any, windows: Tensor, batch: int) -> Tensor:
    """The windows, where the model lies. Refused where they are no tokens of this model, or fewer than one batch; and
    where a weight of the model is no number."""
    shape = list(windows.shape)
    if windows.dim() != 2 or windows.dtype not in (torch.int64, torch.int32):
        raise Refused(f"the windows are {windows.dtype} {shape}; whole numbers [windows, tokens] are needed")
    if shape[0] < batch:
        raise Refused(
            f"the text makes {shape[0]} windows, and one training step takes {batch}",
            hint="Give more text, or shorter windows (--length), or a smaller --batch.",
        )
    if shape[1] < 2:
        raise Refused(f"the windows have {shape[1]} tokens; a next token needs at least 2 (--length)")
    rows = int(model.get_input_embeddings().weight.shape[0])
    low, high = int(windows.min()), int(windows.max())
    if low < 0 or high >= rows:
        raise Refused(
            f"the text has token {low if low < 0 else high}, and the model's embedding has {rows} rows",
            hint="Tokenizer and model are not of one vocabulary.",
        )
    for name, tensor in model.named_parameters():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise Refused(f"{bad} of the {tensor.numel()} weights of {name!r} are NaN or infinite")
    return windows.to(model.device, torch.int64)


def batches(windows: Tensor, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """``steps`` batches ``[size, length]``: pass after pass over all windows, each pass in another random order."""
    random = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(left) < size:
            left = torch.cat([left, torch.randperm(len(windows), generator=random)])
        taken, left = left[:size], left[size:]
        yield windows[taken.to(windows.device)]


def next_token_loss(logits: Tensor, windows: Tensor) -> Tensor:
    """Mean cross entropy of each token after the first, in nats."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())


def rate(step: int, steps: int, warm: float = 0.05) -> float:
    """Factor on the learning rate: up a line over the first part ``warm`` of the steps, then down half a cosine."""
    first = max(1, round(steps * warm))
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + cos(pi * (step - first) / max(1, steps - first)))


def sound(loss: Tensor, step: int, what: str) -> float:
    """The loss as a number; an error where it is none, since a model trained on cannot be had back."""
    value = float(loss.detach())
    if value != value or value == float("inf"):
        raise NettError(f"the loss is {value} at step {step} of {what}; nothing was kept", hint="Lower --lr.")
    return value
