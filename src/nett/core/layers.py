"""Which layer a tensor belongs to, told from its name alone."""

from __future__ import annotations

import re
from typing import NamedTuple

_EMBEDDINGS = (
    "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight", "token_embd.weight",
    "embed_in.weight", "shared.weight",
)  # fmt: skip
_TABLES = (
    "embed.weight", "embedding.weight", "embeddings.weight", "wpe.weight", "embed_positions.weight", "position_embedding.weight", "position_embeddings.weight",
    "token_type_embeddings.weight", "token_embedding.weight", "relative_attention_bias.weight",
)  # fmt: skip
_HEADS = ("lm_head.weight", "output.weight", "embed_out.weight")


class LayerName(NamedTuple):
    """``model.layers.3.mlp.up_proj.weight``: stack ``model.layers``, number 3, role ``mlp.up_proj.weight``."""

    stack: str
    number: int
    role: str

    @property
    def layer(self) -> str:
        return f"{self.stack}.{self.number}" if self.stack else str(self.number)


def layer_of(name: str) -> LayerName | None:
    """The layer, found by the first part of the name that is a number; None where there is none."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isascii() and part.isdigit():
            return LayerName(".".join(parts[:place]), int(part), ".".join(parts[place + 1 :]))
    return None


def module_of(name: str) -> str:
    """The layer's name, or for tensors outside the layers the name without its last part."""
    found = layer_of(name)
    if found is not None:
        return found.layer
    return name.rpartition(".")[0] or name


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts ``layers.2`` before ``layers.10``."""
    return [(int(p), "") if p.isdecimal() and len(p) < 10 else (-1, p) for p in re.split(r"(\d+)", name)]


def is_vocabulary(name: str) -> bool:
    """Whether a tensor is called as those with a row for each token are: embeddings and output heads."""
    return _ends(name, _EMBEDDINGS) or is_head(name)


def is_embedding(name: str) -> bool:
    """Whether a tensor is called as tables are that are looked up by row: tokens, positions, kinds of tokens."""
    return _ends(name, _EMBEDDINGS) or ("." + name).endswith(tuple("." + e for e in _TABLES))


def is_head(name: str) -> bool:
    """Whether a tensor is called as output heads are."""
    return _ends(name, _HEADS)


def _ends(name: str, ends: tuple[str, ...]) -> bool:
    """Whole parts only, and outside the layers: ``blk.0.attn_output.weight`` is no head."""
    return layer_of(name) is None and ("." + name).endswith(tuple("." + e for e in ends))


_BEFORE = (
    "emb", "wte", "wpe", "shared", "project_in", "relative_pe", "patch_conv", "conv1", "conv2", "ln_pre", "layernorm_pre",
)  # fmt: skip


def precedes_layers(name: str) -> bool:
    """Whether a tensor outside the layers is called as those before the first one are: embeddings and what is done to
    them. All others (final norm, output head, pooler, classifier) come after the last one."""
    if layer_of(name) is not None or is_head(name):
        return False
    return any(word in part for part in name.lower().split(".") for word in _BEFORE) and "embed_out" not in name
