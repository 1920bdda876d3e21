"""What a run will take, from headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nett.core.registry import Card
from nett.experts.choosing import uniform_counts
from nett.experts.opening import Opened
from nett.experts.outcome import Router

_TORCH = 450_000_000  # bytes that torch and transformers take before any weight


def figures(
    card: Card,
    model: Opened,
    parameters: Mapping[str, Any],
    tokens: int,
    judged: int,
    router: Router,
    disk: bool,
) -> dict[str, Any]:
    """Bytes, memory and counts of a run."""
    checkpoint, layers = model.skeleton.checkpoint, model.layers
    block = max(sum(p.numel() for p in b.parameters()) for b in model.skeleton.blocks)
    table = model.skeleton.model.get_input_embeddings().weight
    experts = sum(layer.nbytes for layer in layers)
    keep = float(parameters.get("keep", 1.0)) if router != "copies" else 1.0
    largest = max(layer.count * layer.width * layer.hidden * 3 for layer in layers)
    memory = _TORCH + 4 * (block + 2 * table.numel()) + 12 * largest
    memory += 4 * int(table.shape[1]) * max(0 if disk else tokens, 2 * judged)
    return {
        "method": card.key,
        "layers": len(layers),
        "experts": sum(layer.count for layer in layers),
        "experts_kept": sum(uniform_counts(layers, keep)) if "keep" in parameters else None,
        "parameters": checkpoint.parameters,
        "calibration_tokens": tokens,
        "judging_tokens": judged,
        "bytes_read": checkpoint.nbytes,
        "bytes_written": int(checkpoint.nbytes - (1 - keep) * experts),
        "peak_memory_bytes": memory,
    }
