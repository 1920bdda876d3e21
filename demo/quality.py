"""Perplexity and KL divergence of a model on held-out passages, with standard errors over the passages.

Loss is the mean negative log-likelihood of the next token in nats; perplexity is its exponential. KL is the mean
over tokens of KL(reference || model) = sum_v p_ref(v) (log p_ref(v) - log p(v)), over the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from demo.console import DemoFailed
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


def log_probabilities(model: Any, ids: Any) -> Any:
    """Log-probabilities of every next token: ids (passages, length) to (passages, length - 1, vocabulary)."""
    import torch

    with torch.inference_mode():
        return torch.log_softmax(model(ids, use_cache=False).logits[:, :-1].float(), dim=-1)


def measure(found: Any, ids: Any, reference: Any) -> Measured:
    """Loss and KL from log-probabilities of a model and of its reference, both (passages, length - 1, vocabulary)."""
    loss: list[float] = []
    divergence: list[float] = []
    for mine, theirs, passage in zip(found, reference, ids, strict=True):  # one passage at a time bounds the memory
        loss.append(-float(mine.gather(-1, passage[1:, None]).double().mean()))
        divergence.append(float((theirs.exp() * (theirs - mine)).sum(-1).double().mean()))
    return Measured(np.array(loss), np.array(divergence))


def measure_model(
    model: Any, ids: Any, reference: list[Any], *, batch: int = 4, tick: Callable[[int], None] = lambda _: None
) -> Measured:
    """Loss and KL of a model, batch by batch. ``reference`` holds the log-probabilities that KL is taken to, one
    entry a batch; where it is empty the model is its own reference, and fills it."""
    model.eval()
    own = not reference
    parts = []
    for at, some in enumerate(ids.split(batch)):
        found = log_probabilities(model, some)
        if own:
            reference.append(found)
        parts.append(measure(found, some, reference[at]))
        tick(len(some))
    return Measured(np.concatenate([p.loss for p in parts]), np.concatenate([p.kl for p in parts]))


def gain(name: str, base: Measured, tuned: Measured) -> str:
    """What a fine-tune gained on its own text, in words; DemoFailed where its perplexity there is not the lower."""
    better, error = paired(base, tuned)
    told = (
        f"perplexity on held-out {name} {base.perplexity:.2f} before, {tuned.perplexity:.2f} after the fine-tune on "
        f"{name}; loss lower by {better:.3f} ± {error:.3f} nats a token"
    )
    if not tuned.perplexity < base.perplexity:  # so that NaN fails too
        raise DemoFailed(f"{told}; a lower perplexity was expected")
    return told


def table(
    figures: Mapping[tuple[str, str], Measured], models: Sequence[str], texts: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Headers, and a row a model: for each text the perplexity and the KL, each with its standard error."""
    headers = ["model", *(f"perplexity, {t}" for t in texts), *(f"KL, {t}" for t in texts)]
    rows = []
    for model in models:
        found = [figures[model, text] for text in texts]
        rows.append(
            [
                model,
                *(f"{m.perplexity:.2f} ± {m.perplexity_error:.2f}" for m in found),
                *(f"{m.kl.mean():.4f} ± {standard_error(m.kl):.4f}" for m in found),
            ]
        )
    return headers, rows
