"""What a change cost a language model: two models on the same held-out windows, token by token, with intervals.

Both are run block by block, so that memory is that of one block, the embeddings and the windows' hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np

from nett.core.blocks import Skeleton, Walk
from nett.core.dtypes import Array
from nett.core.heap import give_back
from nett.core.windows import Windows

_ROWS = 32  # positions whose logits are compared at a time
# Two-sided 95 % points of Student's t by degrees of freedom; beyond them the normal's.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
      2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


@final
@dataclass(frozen=True)
class Estimate:
    """A mean over windows with its 95 % interval (Student's t over windows; NaN where there is one window only)."""

    mean: float
    low: float
    high: float


def estimate(values: Array) -> Estimate:
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Estimate(mean, math.nan, math.nan)
    half = (_T[count - 2] if count - 2 < len(_T) else 1.96) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half)


@final
@dataclass(frozen=True)
class Quality:
    """Window by window: mean negative log likelihood of the original and of the result [nats a token], mean
    KL(original || result) [nats], share of tokens whose most likely successor changed."""

    original: Array
    result: Array
    kl: Array
    flips: Array
    windows: Windows

    @property
    def perplexity(self) -> float:
        return math.exp(min(80.0, float(np.mean(self.result))))

    def as_json(self) -> dict[str, Any]:
        """Figures with intervals, for receipts. ``change``: of the mean log likelihood, paired."""
        return {
            **self.windows.as_json(),
            "perplexity_original": math.exp(min(80.0, float(np.mean(self.original)))),
            "perplexity": self.perplexity,
            "change": asdict(estimate(self.result - self.original)),
            "kl": asdict(estimate(self.kl)),
            "flips": asdict(estimate(self.flips)),
        }


def compare(original: Skeleton, result: Skeleton, windows: Windows) -> Quality:
    """Both models on the windows. Raises Refused where they are no models of one vocabulary."""
    return qualities(original, [result], windows)[0]


def qualities(original: Skeleton, results: Sequence[Skeleton], windows: Windows) -> list[Quality]:
    """Each of several models against the original, which is run once."""
    import torch

    give_back()  # what was freed while the results were made
    ids = torch.from_numpy(windows.ids)
    before = Walk(original, ids).through()
    return [compared(before, Walk(result, ids).through(), windows) for result in results]


def compared(before: Walk, after: Walk, windows: Windows) -> Quality:
    """Of two walks that have all blocks behind them."""
    table = np.zeros((sum(len(ids) for ids in before.batches), 4))
    give_back()
    for (window, ids, at, mine), (*_, theirs) in zip(before.pieces(_ROWS), after.pieces(_ROWS, before), strict=True):
        table[window] += _piece(ids[at + 1 : at + 1 + len(mine), None], mine, theirs) / (len(ids) - 1)
        del mine, theirs  # before the next are computed
    return Quality(table[:, 0], table[:, 1], table[:, 2], table[:, 3], windows)


def likelihoods(walk: Walk) -> Array:
    """Mean negative log likelihood of each window, for a walk that has all blocks behind it."""
    found = np.zeros(sum(len(ids) for ids in walk.batches))
    for window, ids, at, logits in walk.pieces(_ROWS):
        said = logits.log_softmax(-1).gather(-1, ids[at + 1 : at + 1 + len(logits), None])
        found[window] -= float(said.double().sum()) / (len(ids) - 1)
    return found


def _piece(following: Any, mine: Any, theirs: Any) -> Array:
    """Sums over some positions of [nll, nll, KL, flips]; ``following``: the tokens that came next ``[rows, 1]``."""
    a, b = mine.log_softmax(-1), theirs.log_softmax(-1)
    return np.array(
        [
            -float(a.gather(-1, following).double().sum()),
            -float(b.gather(-1, following).double().sum()),
            float((a.exp() * (a - b)).sum(-1).double().sum()),
            float((a.argmax(-1) != b.argmax(-1)).sum()),
        ]
    )
