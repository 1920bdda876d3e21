"""A model and its tokenizer for this room's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nett.core import torch_model
from nett.core.checkpoint import open_checkpoint
from nett.core.device import use_device


def opened(asset: str, device: str, threads: int) -> tuple[Any, Any]:
    """(model in float32 on the CPU, else in its own type; tokenizer)."""
    use_device(device, threads, "the cache room")
    with open_checkpoint(asset, dense=True) as checkpoint:
        model = torch_model.model(checkpoint)
        tokenizer = torch_model.tokenizer(Path(asset) if Path(asset).is_dir() else checkpoint)
    return (model.float() if device == "cpu" else model).to(device).eval(), tokenizer
