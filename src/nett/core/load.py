"""``nett.load``: the weights of any checkpoint, or of an output of nett, as arrays or as a transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nett.core.checkpoint import open_checkpoint
from nett.core.checkpoint.whole import read_whole
from nett.core.errors import missing_extra


def load(path: str | Path, *, base: str | Path | None = None, as_model: bool = False) -> Any:
    """Name -> array in the tensor's shape (float32, float64 for F64; integers as they are).

    ``as_model``: the transformers model of a Hugging Face folder instead. Raises Refused if there is no checkpoint.
    """
    if as_model:
        try:
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise missing_extra("transformers", "models", "loading a model") from error
        return AutoModelForCausalLM.from_pretrained(str(path))
    with open_checkpoint(path, base=base) as checkpoint:
        return read_whole(checkpoint)
