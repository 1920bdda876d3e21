"""Language models whose caches are made smaller: stories260K, whose heads of keys are half its heads of queries, and a model
of 1.6 million weights with as many of both, which the claim trains on the same text (half a million tokens, a seed each)."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from claims.stories import BEGIN, MODEL, ONCE, TEXTS

CONTEXT, FOLLOW = 160, 32
LENGTH = CONTEXT + FOLLOW
TRAIN = 0.75  # of the stories, by place; the others are to test
TRAINING = {"steps": 300, "batch": 8, "lr": 3e-3}
SIZES = {
    "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 4,
    "vocab_size": 512, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class CacheBed:
    """windows: beginnings of stories that no model here was trained on by the claim, int64 ``[n, LENGTH]``."""

    name: str
    size: str
    model: Any
    windows: torch.Tensor


def grouped(seed: int, windows: int) -> CacheBed:
    """stories260K; a seed has windows of its own."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(Path(os.environ["NETT_ASSETS"]) / MODEL, dtype=torch.float32).eval()
    return CacheBed("stories260K", "5 blocks, 8 heads of 4", model, _share(seed, windows))


def trained(seed: int, windows: int, steps: int = int(TRAINING["steps"])) -> CacheBed:
    """A Llama with a key head for each query head, from its own starting point."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = torch.cat(_stories()[: int(TRAIN * len(_stories()))])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**SIZES, bos_token_id=BEGIN, eos_token_id=2))
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TRAINING["lr"], weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = TRAINING["lr"] * min(1, (step + 1) / 30, 1.05 - step / steps)
        at = torch.randint(len(ids) - LENGTH, (int(TRAINING["batch"]),), generator=random)
        batch = torch.stack([ids[i : i + LENGTH] for i in at.tolist()])
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        optimizer.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return CacheBed("stories, MHA", "8 blocks, 4 heads of 4", model.eval().requires_grad_(False), _share(seed, windows))


@functools.cache
def _stories() -> list[torch.Tensor]:
    """Each story's tokens, behind the token that begins a text."""
    from transformers import AutoTokenizer

    folder = Path(os.environ["NETT_ASSETS"])
    tokenizer = AutoTokenizer.from_pretrained(folder / MODEL)
    words = (folder / TEXTS["stories"]).read_text(encoding="utf-8")
    told = (ONCE + rest.replace("\n\n", "\n") for rest in words.split(ONCE)[1:])
    return [
        torch.tensor([BEGIN, *tokenizer(t, add_special_tokens=False, verbose=False)["input_ids"]], dtype=torch.int64)
        for t in told
    ]


def _share(seed: int, count: int) -> torch.Tensor:
    """Windows of one seed: none is another seed's."""
    told = _stories()[int(TRAIN * len(_stories())) :]
    rows = [ids[:LENGTH] for ids in told if len(ids) >= LENGTH]
    mine = rows[seed * count : (seed + 1) * count]
    if len(mine) < count:
        raise ValueError(f"seed {seed} has {len(mine)} windows of {count}: {len(rows)} stories are long enough")
    return torch.stack(mine)
