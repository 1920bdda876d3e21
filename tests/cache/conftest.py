"""Small models with attention of three kinds of heads, made once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers


@pytest.fixture(scope="session")
def llama() -> Any:
    """Two heads of keys for four of queries; weights large enough for attention to have preferences."""
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=64, max_position_embeddings=256,
    )  # fmt: skip
    return made(config)


def made(config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2 and "embed" not in name:
                p.mul_(8)
    return model


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    return torch.randint(2, 64, (2, 96), generator=torch.Generator().manual_seed(1))
