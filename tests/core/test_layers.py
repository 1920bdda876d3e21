"""What a tensor is, told from its name."""

from __future__ import annotations

import pytest

from nett.core.layers import is_embedding, is_head


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "embeddings.position_embeddings.weight",
        "text_model.embeddings.token_embedding.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "embedding.weight",
    ],
)
def test_tables_that_are_looked_up_by_row(name: str) -> None:
    assert is_embedding(name) and not is_head(name)


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.layers.0.mlp.up_proj.weight",
        "patch_embed.proj.weight",
        "fc1.weight",
        "",
        "member.weight",
    ],
)
def test_matrices_that_are_not(name: str) -> None:
    assert not is_embedding(name)
