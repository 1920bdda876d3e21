"""Small random language models of several families, as transformers builds them, and what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCAB = 40
COMMON = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": VOCAB, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 48}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED | {"tie_word_embeddings": True},
    "qwen2": GROUPED,  # biases on q, k and v
    "qwen3": GROUPED | {"head_dim": 8},  # norms within heads
    "gemma2": GROUPED | {"head_dim": 8, "sliding_window": 8},
    "phi3": GROUPED,  # q, k, v in one matrix, gate and up in another
    "olmo2": GROUPED,  # norms over all heads
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": {"intermediate_size": 48},  # q, k, v in one matrix, head by head
    "gpt2": {},  # matrices [in, out]; the config has no head size
}


def language_model(family: str, *, seed: int = 0, **more: Any) -> Any:
    """A float32 model in evaluation mode whose weights, biases included, are random."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(family, **COMMON | FAMILIES[family] | more)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.2
                parameter.add_(torch.randn(parameter.shape) * scale)
    return model.eval()


def token_windows(count: int = 12, length: int = 10, seed: int = 0) -> Any:
    """int64 [count, length]: a random walk, so that there is something to learn."""
    import torch

    random = torch.Generator().manual_seed(seed)
    steps = torch.randint(0, 3, (count, length), generator=random)
    return (3 + steps.cumsum(dim=1) + torch.randint(0, VOCAB, (count, 1), generator=random)) % (VOCAB - 3) + 3


def logits(model: Any, windows: Any) -> Any:
    """float32 [windows, length, vocabulary] as NumPy."""
    import torch

    with torch.no_grad():
        return model(input_ids=windows, use_cache=False).logits.numpy()


def loaded_again(model: Any, folder: Path) -> Any:
    """The model as transformers loads what it saved."""
    import transformers

    model.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder)
