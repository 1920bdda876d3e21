"""What a policy changes in what a model says next: token by token against the full cache, on the same text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np

from nett.cache.policy import Policy, ledger
from nett.cache.recording import Recording, attending, record
from nett.core.dtypes import Array
from nett.core.quality import estimate


@final
@dataclass(frozen=True)
class Judged:
    """Text by text: mean KL(full || policy) [nats] over the continuation's tokens, share of changed top-1 tokens, mean
    negative log likelihood under both; bytes that were held at the end and those of the full cache; seconds a token."""

    kl: Array
    flips: Array
    full: Array
    policy: Array
    bytes: float
    full_bytes: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "kl": asdict(estimate(self.kl)),
            "flips": asdict(estimate(self.flips)),
            "perplexity_full": float(np.exp(np.mean(self.full))),
            "perplexity": float(np.exp(np.mean(self.policy))),
            "change": asdict(estimate(self.policy - self.full)),
            "bytes": self.bytes,
            "full_bytes": self.full_bytes,
            "share": self.bytes / self.full_bytes,
            "seconds_a_token": self.seconds,
        }


@final
@dataclass(frozen=True)
class Bed:
    """Texts whose prompts were run once: a recording, the continuation's ids and the full cache's log probabilities."""

    recordings: Sequence[Recording]
    following: Sequence[Any]
    expected: Sequence[Any]


def bed_of(model: Any, windows: Any, context: int) -> Bed:
    """``windows`` int64 ``[texts, length]``: the first ``context`` tokens are the prompt, the others follow."""
    import torch

    recordings, following, expected = [], [], []
    for row in windows:
        one = record(model, row[None, :context])
        with torch.no_grad():
            logits = model(row[None]).logits[0, context - 1 : -1].float()
        recordings.append(one)
        following.append(row[context:])
        expected.append(logits.log_softmax(-1))
    return Bed(recordings, following, expected)


def judge(model: Any, bed: Bed, policy: Policy) -> Judged:
    """The continuations token by token, each through the cache that the policy keeps."""
    import torch

    rows, held, whole, seconds, tokens = [], 0.0, 0.0, 0.0, 0
    with torch.no_grad(), attending(model):
        for one, ids, expected in zip(bed.recordings, bed.following, bed.expected, strict=True):
            cache = one.cache(policy, model)
            logits = [one.last]
            began = time.perf_counter()
            for token in ids[:-1]:
                logits.append(model(token.reshape(1, 1), past_key_values=cache).logits)
            seconds, tokens = seconds + time.perf_counter() - began, tokens + len(ids) - 1
            mine = torch.cat(logits, 1)[0].float().log_softmax(-1)
            told = ledger(cache)
            held, whole = held + told["bytes"], whole + told["full_bytes"]
            at = ids[:, None]
            rows.append(
                (
                    float((expected.exp() * (expected - mine)).sum(-1).mean()),
                    float((expected.argmax(-1) != mine.argmax(-1)).float().mean()),
                    -float(expected.gather(-1, at).mean()),
                    -float(mine.gather(-1, at).mean()),
                )
            )
    table, count = np.array(rows), len(rows)
    kl, flips, full, said = table.T
    return Judged(kl, flips, full, said, held / count, whole / count, seconds / max(1, tokens))
