"""What a policy changes in what a model says next: token by token against the full cache, on the same text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np

from nett.cache.policy import Policy, ledger
from nett.cache.recording import Recording, record
from nett.core.dtypes import Array
from nett.core.quality import estimate


@final
@dataclass(frozen=True)
class Judged:
    """Text by text: mean KL(full || policy) [nats] over the continuation's tokens, share of changed top-1 tokens, mean
    negative log likelihood under both; bytes that a text's cache held at the end, and the full cache; seconds a step of a batch."""

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
    """Batches of texts whose prompts were run once: a recording, the continuations' ids ``[b, follow]``, and the full
    cache's log probabilities of their tokens ``[b, follow, vocabulary]``."""

    recordings: Sequence[Recording]
    following: Sequence[Any]
    expected: Sequence[Any]


def bed_of(model: Any, windows: Any, context: int, *, batch: int = 16) -> Bed:
    """``windows`` int64 ``[texts, length]``: the first ``context`` tokens are the prompt, the others follow."""
    import torch

    recordings, following, expected = [], [], []
    for start in range(0, len(windows), batch):
        rows = windows[start : start + batch]
        recordings.append(record(model, rows[:, :context]))
        with torch.no_grad():
            logits = model(rows).logits[:, context - 1 : -1].float()
        following.append(rows[:, context:])
        expected.append(logits.log_softmax(-1))
    return Bed(recordings, following, expected)


def judge(model: Any, bed: Bed, policy: Policy) -> Judged:
    """The continuations token by token, each text with a cache of its own that the policy keeps."""
    import torch

    rows, held, whole, seconds, tokens = [], 0.0, 0.0, 0.0, 0
    with torch.no_grad(), policy.on(model):
        for one, ids, expected in zip(bed.recordings, bed.following, bed.expected, strict=True):
            cache = one.cache(policy, model)
            logits = [one.last]
            began = time.perf_counter()
            for token in ids[:, :-1].T:
                logits.append(model(token[:, None], past_key_values=cache).logits)
            seconds, tokens = seconds + time.perf_counter() - began, tokens + ids.shape[1] - 1
            mine = torch.cat(logits, 1).float().log_softmax(-1)
            told = ledger(cache)
            held, whole = held + told["bytes"], whole + told["full_bytes"]
            at = ids[..., None]
            found = (
                (expected.exp() * (expected - mine)).sum(-1).mean(-1),
                (expected.argmax(-1) != mine.argmax(-1)).float().mean(-1),
                -expected.gather(-1, at)[..., 0].mean(-1),
                -mine.gather(-1, at)[..., 0].mean(-1),
            )
            rows.append(torch.stack(found, 1).double().cpu().numpy())
    table = np.concatenate(rows)
    kl, flips, full, said = table.T
    return Judged(kl, flips, full, said, held / len(table), whole / len(table), seconds / max(1, tokens))
