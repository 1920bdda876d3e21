"""``nett.load``: the weights of any checkpoint, or of an output of nett, as arrays or as a transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nett.core.checkpoint import open_checkpoint
from nett.core.checkpoint.whole import read_whole


def load(
    path: str | Path, *, base: str | Path | None = None, as_model: bool = False, as_tokenizer: bool = False
) -> Any:
    """Name -> array in the tensor's shape (float32, float64 for F64; integers as they are).

    ``as_model``: a transformers model instead, in the types that the weights have; ``as_tokenizer``: the tokenizer
    that lies beside them. What lies in a store (``STORE/MODEL``), a GGUF file or an adapter on its base is read where
    it lies, tensor by tensor: no copy is written, and the memory is that of the model. Raises Refused if there is no
    checkpoint, or none that transformers could be told.
    """
    if as_model or as_tokenizer:
        from nett.core import torch_model

        whole = torch_model.tokenizer if as_tokenizer else torch_model.model
        if base is None and (Path(path) / "config.json").is_file():
            return whole(Path(path))
        with open_checkpoint(path, base=base) as checkpoint:
            return whole(checkpoint)
    with open_checkpoint(path, base=base) as checkpoint:
        return read_whole(checkpoint)
