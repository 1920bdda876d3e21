"""Attention over slots that a policy holds: which a query may see, how often one counts, and what was looked at.

The function is registered with transformers under a name of its own (``nett``) and used while a policy is on a model;
nothing of transformers is replaced.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

NAME = "nett"
_QUERIES = 32  # whose weights over all slots are computed together: they fit a core's cache


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
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layer: Any = getattr(key, "nett_layer", None)
    noted: dict[str, Any] = {}
    fits = attention_mask is None or attention_mask.shape[-1] == key.shape[-2]  # made by what the first layer holds
    if not dropout and hasattr(layer, "fuses") and layer.fuses(query, attention_mask):
        found, noted["noted"] = with_mass(query, key, value, scaling)
        out = found.transpose(1, 2).contiguous()
    elif not hasattr(layer, "bias") or (layer.plain and fits):
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    else:
        mask = layer.bias(query, attention_mask)
        found = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=query.shape[1] > key.shape[1],
        )  # without a copy of keys and values for each query head
        out = found.transpose(1, 2).contiguous()
    if layer is not None:
        layer.attended(query, attention_mask, scaling, **noted)
    return out, None


def asked_length(query_length: Any) -> int:
    """How many tokens a mask is asked for: transformers below 5.3 gives their positions in place of their number."""
    return int(getattr(query_length, "shape", (query_length,))[0])


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

    rows, heads, count, _ = query.shape
    kept, groups = key.shape[1], heads // key.shape[1]
    found = torch.zeros(rows, kept, count, key.shape[2], device=key.device)
    for start in range(0, count, _QUERIES):
        some = slice(start, start + _QUERIES)
        logits = _logits(query[:, :, some], key, scaling)
        if bias is not None:
            part = bias[:, :, some].float()
            logits += part.unsqueeze(2) if part.shape[1] == 1 else part.unflatten(1, (kept, groups))
        found[:, :, some] = logits.softmax(-1).mean(2)
    return found


def mass(query: Any, key: Any, scaling: float | None) -> Any:
    """The sum over queries of :func:`weights` where the queries are the last tokens and each sees all up to itself:
    float32 ``[b, h, n]``. No more is held than the weights of a few queries, and nothing is computed of what none sees."""
    return _through(query, key, None, scaling)[1]


def with_mass(query: Any, key: Any, value: Any, scaling: float | None) -> tuple[Any, Any]:
    """What such queries get ``[b, hq, q, d]``, to rounding, and their mass, at little more than the cost of the first."""
    out, found = _through(query, key, value, scaling)
    return out.to(query.dtype), found


def _through(query: Any, key: Any, value: Any, scaling: float | None) -> tuple[Any, Any]:
    import torch

    rows, heads, count, _ = query.shape
    held, groups = key.shape[2], heads // key.shape[1]
    found = torch.zeros(rows, key.shape[1], held, device=key.device)
    parts = []
    for start in range(0, count, _QUERIES):
        asked = query[:, :, start : start + _QUERIES]
        many = asked.shape[2]
        first, seen = held - count + start, held - count + start + many
        logits = _logits(asked, key[:, :, :seen], scaling)
        if many > 1:
            later = torch.ones(many, many, dtype=torch.bool, device=key.device).triu(1)
            logits[..., first:].masked_fill_(later, -torch.inf)
        flat = logits.softmax(-1).flatten(2, 3)
        found[:, :, :seen] += (flat.new_full((1, flat.shape[2]), 1 / groups) @ flat)[:, :, 0]
        if value is not None:
            parts.append((flat @ value[:, :, :seen].float()).unflatten(2, (groups, many)).flatten(1, 2))
    return torch.cat(parts, 2) if parts else None, found


def _logits(query: Any, key: Any, scaling: float | None) -> Any:
    """``[b, h, g, q, n]``; the query heads of a group are rows of one product, so that keys are not copied for each."""
    rows, heads, count, width = query.shape
    scale = 1 / math.sqrt(width) if scaling is None else scaling
    asked = (query.float() * scale).reshape(rows, key.shape[1], -1, width)
    return (asked @ key.float().transpose(-1, -2)).unflatten(2, (heads // key.shape[1], count))
