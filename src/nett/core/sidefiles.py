"""What a model folder holds beside its weights: config, tokenizer, chat template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nett.core.checkpoint import Checkpoint
from nett.core.dtypes import Dtype

_EXACT = {
    "config.json", "generation_config.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "preprocessor_config.json", "processor_config.json", "spiece.model",
    "sentencepiece.bpe.model",
}  # fmt: skip


def side_files(folder: Path) -> dict[str, bytes]:
    """Name -> content of the side files of a Hugging Face folder, in name order."""
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if is_side_file(f.name) and f.is_file()}


def is_side_file(name: str) -> bool:
    wanted = name in _EXACT or name.startswith(("tokenizer", "chat_template"))
    return wanted and not name.endswith((".safetensors", ".bin"))


def model_files(checkpoint: Checkpoint) -> tuple[dict[str, bytes], list[str]]:
    """What goes beside the weights of a model: name -> content, and what the reader should know.

    A GGUF file carries config and tokenizer inside; an adapter those of its base, with what it changes, and a
    tokenizer of its own if it has one; a bare file of weights none.
    """
    config = checkpoint.config()
    if config is None:
        reason = getattr(checkpoint, "reason", None)
        return {}, [f"no config.json and no tokenizer: {reason or f'{checkpoint.path} comes with none'}"]
    beside = checkpoint.beside()
    notes: list[str] = []
    if beside is not None:
        found = beside
    elif checkpoint.format == "gguf":
        from nett.core.checkpoint.gguf_tokenizer import tokenizer_files

        tokens = getattr(checkpoint, "metadata", {}).get("tokenizer.ggml.tokens")
        found, why = tokenizer_files(checkpoint.path, tokens) if tokens else ({}, "the file holds none")
        notes = [f"no tokenizer: {why}"] if why else []
    else:
        found = side_files(checkpoint.folder)
        if checkpoint.format == "peft":
            found |= {n: c for n, c in side_files(checkpoint.path).items() if n != "config.json"}
    if "config.json" not in found or json.loads(found["config.json"]) != config:
        found["config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return dict(sorted(found.items())), notes


def changed_files(
    checkpoint: Checkpoint, dtype: Dtype | None, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[dict[str, bytes], list[str]]:
    """:func:`model_files` with another ``config.json``."""
    found, notes = model_files(checkpoint)
    if "config.json" in found:
        config = change(json.loads(with_dtype(found["config.json"], dtype)))
        found["config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return found, notes


def with_dtype(config: bytes, dtype: Dtype | None) -> bytes:
    """``config.json`` naming another element type; unchanged where none is given."""
    if dtype is None:
        return config
    content = json.loads(config)
    for key in ("dtype", "torch_dtype"):
        if key in content:
            content[key] = dtype.alias
    if "dtype" not in content and "torch_dtype" not in content:
        content["dtype"] = dtype.alias
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
