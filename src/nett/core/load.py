"""``nett.load``: the weights of any checkpoint, or of an output of nett, as arrays or as a transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nett.core.checkpoint import open_checkpoint
from nett.core.checkpoint.whole import read_whole
from nett.core.checkpoint.writer import byte_size
from nett.core.errors import Refused
from nett.core.receipt import read_receipt


def load(
    path: str | Path,
    *,
    base: str | Path | None = None,
    budget: str | int | None = None,
    as_model: bool = False,
    as_tokenizer: bool = False,
) -> Any:
    """Name -> array in the tensor's shape (float32, float64 for F64; integers as they are).

    ``as_model``: a transformers model instead, in the types that the weights have; ``as_tokenizer``: the tokenizer
    that lies beside them. What lies in a store (``STORE/MODEL``), a GGUF file or an adapter on its base is read where
    it lies, tensor by tensor: no copy is written, and the memory is that of the model. ``budget``: of what nett weights
    bitstack wrote, as much as fits into so many bytes (``90MB``). Raises Refused if there is no checkpoint, or none that
    transformers could be told.
    """
    path = Path(path) if budget is None else at_budget(path, budget)
    if as_model or as_tokenizer:
        from nett.core import torch_model

        whole = torch_model.tokenizer if as_tokenizer else torch_model.model
        if base is None and (path / "config.json").is_file() and (as_tokenizer or _has_weights(path)):
            return whole(path)
        with open_checkpoint(path, base=base) as checkpoint:
            return whole(checkpoint)
    with open_checkpoint(path, base=base) as checkpoint:
        return read_whole(checkpoint)


def at_budget(path: str | Path, budget: str | int) -> Path:
    """``DIR/90MB``: the reference of an output of nett at a budget; Refused where there is none to choose from."""
    folder = Path(path)
    byte_size(str(budget))  # names what is no size
    receipt = read_receipt(folder)
    if receipt["room"] != "weights":
        raise Refused("has one size only, so there is no budget to choose", where=folder)
    return folder / str(budget)


def _has_weights(folder: Path) -> bool:
    return any(f.suffix in (".safetensors", ".bin") for f in folder.iterdir())
