"""Attention over slots that a policy holds: which a query may see, how often one counts, and what was looked at.

The function is registered with transformers under a name of its own (``nett``) and used while a policy is on a model;
nothing of transformers is replaced.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

NAME = "nett"
_QUERIES = 256  # whose weights over all slots are computed together


@cache
def register() -> str:
    """Make the name known to transformers, once. Returns it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Any, None]:
    """As transformers' ``sdpa``: query ``[b, hq, q, d]``, key and value ``[b, h, n, d]`` -> ``[b, q, hq, d]``."""
    import torch
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    layer = getattr(key, "nett_layer", None)
    fits = (
        attention_mask is None or attention_mask.shape[-1] == key.shape[-2]
    )  # it is made by what the first layer holds
    if layer is None or (layer.plain and fits):
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    else:
        groups = query.shape[1] // key.shape[1]
        mask = layer.bias(query, attention_mask)
        found = torch.nn.functional.scaled_dot_product_attention(
            query, repeat_kv(key, groups), repeat_kv(value, groups), attn_mask=mask, scale=scaling, dropout_p=dropout
        )
        out = found.transpose(1, 2).contiguous()
    if layer is not None:
        layer.attended(query, attention_mask, scaling)
    return out, None


def come(mask: Any, count: int, rows: int) -> Any:
    """Which of the ``count`` tokens that came are no padding ``[b, q]``, by the model's mask; None where all are."""
    if mask is None or count == 1:
        return None
    last = mask[:, 0, -1, -count:]
    seen = last == 0 if last.is_floating_point() else last
    return None if bool(seen.all()) else seen.expand(rows, count)


def weights(query: Any, key: Any, bias: Any, scaling: float | None) -> Any:
    """Attention weights, the mean over the query heads of each key head: float32 ``[b, h, q, n]``; ``bias`` is added to
    the logits, ``[b, 1 or hq, q, n]`` or None."""
    import torch

    rows, heads, count, width = query.shape
    groups = heads // key.shape[1]
    scale = 1 / math.sqrt(width) if scaling is None else scaling
    found = torch.zeros(rows, key.shape[1], count, key.shape[2], device=key.device)
    for start in range(0, count, _QUERIES):
        some = slice(start, start + _QUERIES)
        asked = query[:, :, some].float().reshape(rows, key.shape[1], groups, -1, width)
        logits = asked @ key.float().unsqueeze(2).transpose(-1, -2) * scale  # [b, h, g, q, n]
        if bias is not None:
            part = bias[:, :, some].float()
            logits += (
                part.unsqueeze(2) if part.shape[1] == 1 else part.reshape(rows, key.shape[1], groups, *part.shape[2:])
            )
        found[:, :, some] = logits.softmax(-1).mean(2)
    return found
