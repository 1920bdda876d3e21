"""Perplexity and KL divergence of a model on held-out passages, with standard errors over the passages.

Loss is the mean negative log-likelihood of the next token in nats; perplexity is its exponential. KL is the mean
over tokens of KL(reference || model) = sum_v p_ref(v) (log p_ref(v) - log p(v)), over the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array


@final
@dataclass(frozen=True)
class Measured:
    """One model on one text: a value for each passage, shape (passages,)."""

    loss: Array  # nats a token
    kl: Array  # nats a token, to the text's reference

    @property
    def perplexity(self) -> float:
        return math.exp(float(self.loss.mean()))

    @property
    def perplexity_error(self) -> float:
        """Standard error, by the delta method: d exp(x) = exp(x) dx."""
        return self.perplexity * standard_error(self.loss)


def standard_error(values: Array) -> float:
    """Of the mean of independent values; NaN for fewer than two."""
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.nan


def paired(first: Measured, second: Measured) -> tuple[float, float]:
    """Mean of loss(first) - loss(second) over the same passages, and its standard error."""
    difference = first.loss - second.loss
    return float(difference.mean()), standard_error(difference)


def kept(base: Measured, tuned: Measured, model: Measured) -> float:
    """Share of the fine-tune's gain in loss over the base that a model has: 1 as the fine-tune, 0 as the base."""
    gain = float(base.loss.mean() - tuned.loss.mean())
    return float(base.loss.mean() - model.loss.mean()) / gain if gain else math.nan


def log_probabilities(model: Any, ids: Any, *, batch: int = 4, tick: Callable[[int], None] | None = None) -> Any:
    """Log-probabilities of every next token: ids (passages, length) to (passages, length - 1, vocabulary)."""
    import torch

    model.eval()
    parts = []
    with torch.inference_mode():
        for some in ids.split(batch):
            parts.append(torch.log_softmax(model(some, use_cache=False).logits[:, :-1].float(), dim=-1))
            if tick is not None:
                tick(len(some))
    return torch.cat(parts)


def measure(found: Any, ids: Any, reference: Any) -> Measured:
    """Loss and KL from log-probabilities of a model and of its reference, both (passages, length - 1, vocabulary)."""
    loss: list[float] = []
    divergence: list[float] = []
    for mine, theirs, passage in zip(found, reference, ids, strict=True):  # one passage at a time bounds the memory
        loss.append(-float(mine.gather(-1, passage[1:, None]).double().mean()))
        divergence.append(float((theirs.exp() * (theirs - mine)).sum(-1).double().mean()))
    return Measured(np.array(loss), np.array(divergence))


def table(figures: dict[tuple[str, str], Measured], models: Sequence[str], texts: Sequence[str]) -> list[list[Any]]:
    """A row a model: for each text the perplexity and the KL, each with its standard error."""
    rows: list[list[Any]] = []
    for model in models:
        row: list[Any] = [model]
        for text in texts:
            m = figures[model, text]
            row += [
                f"{m.perplexity:.2f} ± {m.perplexity_error:.2f}",
                f"{m.kl.mean():.4f} ± {standard_error(m.kl):.4f}",
            ]
        rows.append(row)
    return rows
