"""A model and its tokenizer for this room's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nett.core import torch_model
from nett.core.checkpoint import open_checkpoint
from nett.core.errors import UsageError, missing_extra
from nett.core.runner import thread_count


def opened(asset: str, device: str, threads: int) -> tuple[Any, Any]:
    """(model in float32 on the CPU, else in its own type; tokenizer)."""
    try:
        import torch
    except ImportError as error:
        raise missing_extra("torch", "models", "the cache room") from error
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device = {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    torch.set_num_threads(thread_count(threads))
    with open_checkpoint(asset, dense=True) as checkpoint:
        model = torch_model.model(checkpoint)
        tokenizer = torch_model.tokenizer(Path(asset) if Path(asset).is_dir() else checkpoint)
    return (model.float() if device == "cpu" else model).to(device).eval(), tokenizer
