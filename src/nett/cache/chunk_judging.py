"""What a prompt's reuse changes in what the model says next, against full recomputation of the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nett.cache.chunk_serving import Served


def said(model: Any, served: Served, tokens: int) -> list[int]:
    """The ``tokens`` most likely next tokens, one after the other, or fewer where the model ends; the cache grows by them."""
    import torch

    ends = getattr(model.generation_config, "eos_token_id", None)
    stops = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    found = [int(served.logits.argmax())]
    with torch.no_grad():
        while len(found) < tokens and found[-1] not in stops:
            ids = torch.tensor([[found[-1]]], device=model.device)
            found.append(int(model(ids, past_key_values=served.cache).logits[0, -1].argmax()))
    return found


def following(model: Any, served: Served, tokens: Sequence[int]) -> Any:
    """Log probabilities ``[n, v]`` of the places of ``tokens`` behind the prompt, each after those before it. The cache is
    left as it was."""
    import torch

    rows = [served.logits[None]]
    if len(tokens) > 1:
        ids = torch.tensor([list(tokens[:-1])], device=model.device)
        with torch.no_grad():
            rows.append(model(ids, past_key_values=served.cache).logits[0].float())
        served.cache.crop(1 - len(tokens))
    return torch.cat(rows).log_softmax(-1)


def divergence(full: Any, mine: Any) -> Any:
    """KL(full || mine) in nats of each place ``[n]``, of log probabilities ``[n, v]``."""
    full, mine = full.double(), mine.double()
    return (full.exp() * (full - mine)).sum(-1)
