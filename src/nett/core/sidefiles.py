"""What a model folder holds beside its weights: config, tokenizer, chat template."""

from __future__ import annotations

import json
from pathlib import Path

from nett.core.dtypes import Dtype

_EXACT = {
    "config.json", "generation_config.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "preprocessor_config.json", "processor_config.json", "spiece.model",
    "sentencepiece.bpe.model",
}  # fmt: skip


def side_files(folder: Path) -> dict[str, bytes]:
    """Name -> content of the side files of a Hugging Face folder, in name order."""
    found = {}
    for file in sorted(folder.iterdir()):
        wanted = file.name in _EXACT or file.name.startswith(("tokenizer", "chat_template"))
        if wanted and file.is_file() and not file.name.endswith((".safetensors", ".bin")):
            found[file.name] = file.read_bytes()
    return found


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
