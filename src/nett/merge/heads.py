"""Output layers of language models: of some the embeddings under another name, of others weights of their own."""

from __future__ import annotations

import json
from collections.abc import Iterable

from nett.core.checkpoint import Checkpoint
from nett.core.checkpoint.json_text import text_part

HEAD = "lm_head.weight"


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the embeddings are the output layer too."""
    config = checkpoint.config() or {}
    return bool(config.get("tie_word_embeddings", text_part(config).get("tie_word_embeddings")))


def gets_own_head(donor: Checkpoint, names: Iterable[str], models: Iterable[Checkpoint]) -> bool:
    """Whether an output with the tensors ``names`` has a head of its own though the config's ``donor`` ties its: one of
    the ``models`` does not. Loaders would pass over the head that is written if the config went on saying so."""
    return HEAD in names and is_tied(donor) and not all(is_tied(m) for m in models)


def with_own_head(config: bytes) -> bytes:
    """``config.json`` of a model whose output layer is not its embeddings."""
    content = json.loads(config)
    for part in (content, content.get("text_config")):
        if isinstance(part, dict) and (part is content or "tie_word_embeddings" in part):
            part["tie_word_embeddings"] = False
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
