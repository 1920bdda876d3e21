"""A small mixture of experts trained on real text on a CPU: the bed of the claims about experts.

Bytes are its tokens. It is written as a folder that transformers (and nett) loads, under nett's cache, by a hash of
everything that decides what it becomes; whoever asks again gets it from there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional as F

from claims.mixture_texts import KINDS, Texts, texts
from nett.core.torch_model import quiet


@dataclass(frozen=True)
class Recipe:
    """What decides the bed. ``steps`` of ``rows`` windows of ``window`` bytes, equal parts of each kind of text."""

    hidden: int = 128
    width: int = 256
    layers: int = 4
    experts: int = 8
    chosen: int = 2
    window: int = 128
    rows: int = 12
    steps: int = 2000
    rate: float = 2e-3
    balance: float = 0.01  # of the loss that evens out the experts' load
    text: int = 4_000_000  # bytes a kind, at most
    seed: int = 0

    def key(self, text: Texts) -> str:
        said = json.dumps(asdict(self) | {"sha256": text.sha256, "torch": torch.__version__}, sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]


SMALL = Recipe(
    hidden=32, width=48, layers=2, experts=4, window=64, rows=8, steps=150, text=200_000
)  # some 50,000 weights


def cache() -> Path:
    """Where beds are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("NETT_CACHE") or os.path.join(home, "nett")) / "mixtures"


def bed(recipe: Recipe, where: Path | None = None) -> Path:
    """The folder of the trained model; beside it ``learn-KIND.txt`` and ``judge-KIND.txt``, and ``training.json`` with the
    loss on the way and in the end."""
    text = texts(recipe.text, recipe.seed)
    folder = (where or cache()) / recipe.key(text)
    if (folder / "training.json").is_file():
        return folder
    began = time.monotonic()
    model, path = trained(recipe, text)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    with quiet():
        model.save_pretrained(partial)
    write_tokenizer(partial)
    for kind in KINDS:
        (partial / f"learn-{kind}.txt").write_bytes(text.learn[kind])
        (partial / f"judge-{kind}.txt").write_bytes(text.judge[kind])
    said = {
        "recipe": asdict(recipe),
        "seconds": round(time.monotonic() - began, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "path": path,
        "nats": {kind: losses(model, text.judge[kind], recipe.window) for kind in KINDS},
    }
    (partial / "training.json").write_text(json.dumps(said, indent=1) + "\n")
    if folder.exists():  # another process was quicker
        return folder
    os.rename(partial, folder)
    return folder


def made(recipe: Recipe) -> Any:
    """The model before training."""
    torch.manual_seed(recipe.seed)
    config = transformers.MixtralConfig(
        vocab_size=256,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=recipe.experts,
        num_experts_per_tok=recipe.chosen,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        router_aux_loss_coef=recipe.balance,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.MixtralForCausalLM(config).float()
    model.set_experts_implementation("eager")
    return model


def batches(recipe: Recipe, text: Texts) -> Iterator[Any]:
    """Windows int64 [rows, window + 1], the kinds in turn."""
    held = [torch.from_numpy(np.frombuffer(text.learn[k], np.uint8).astype(np.int64)) for k in KINDS]
    draw = torch.Generator().manual_seed(recipe.seed)
    while True:
        rows = []
        for row in range(recipe.rows):
            data = held[row % len(held)]
            start = int(torch.randint(0, len(data) - recipe.window - 1, (1,), generator=draw))
            rows.append(data[start : start + recipe.window + 1])
        yield torch.stack(rows)


def trained(recipe: Recipe, text: Texts) -> tuple[Any, list[list[float]]]:
    """The model after all steps of AdamW (warm-up, cosine to a tenth), and [step, loss] on the way."""
    model = made(recipe).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.1, betas=(0.9, 0.95))
    warm = max(1, min(100, recipe.steps // 10))

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, recipe.steps - warm))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    path, drawn = [], batches(recipe, text)
    for step in range(recipe.steps):
        rows = next(drawn)
        out = model(input_ids=rows[:, :-1], output_router_logits=True, use_cache=False)
        loss = F.cross_entropy(out.logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + recipe.balance * out.aux_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step + 1 == recipe.steps:
            path.append([step, round(float(loss.detach()), 4)])
    return model.eval(), path


@torch.no_grad()
def losses(model: Any, text: bytes, window: int, most: int = 400) -> float:
    """Nats a byte on text that was not learned from."""
    held = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    rows = held[: len(held) // (window + 1) * (window + 1)].reshape(-1, window + 1)[:most]
    total = 0.0
    for part in rows.split(16):
        out = model(input_ids=part[:, :-1], use_cache=False).logits
        total += float(F.cross_entropy(out.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return round(total / rows[:, 1:].numel(), 4)


@torch.no_grad()
def sums_right(model: Any, count: int = 200, seed: int = 0) -> float:
    """Share of sums that were never learned which the model finishes: ``17+25=`` -> ``42`` and the end of the line, said
    greedily after four other sums."""
    random = np.random.default_rng([seed, 1])
    apart = random.permutation(10_000)[:1000]  # as mixture_texts.sums draws them
    lines = [(int(p) // 100, int(p) % 100) for p in apart[:count]]
    first = "".join(f"{a}+{b}={a + b}\n" for a, b in ((12, 7), (48, 35), (5, 61), (90, 24)))
    right = 0
    for a, b in lines:
        ids = torch.tensor([list(f"{first}{a}+{b}=".encode())])
        wanted = list(f"{a + b}\n".encode())
        for byte in wanted:
            said = int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
            if said != byte:
                break
            ids = torch.cat([ids, torch.tensor([[said]])], 1)
        else:
            right += 1
    return right / len(lines)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer whose token ids are the bytes of the text."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    content: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {character: byte for byte, character in sorted(bytes_to_unicode().items())},
            "merges": [],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": 1 << 20,
                "clean_up_tokenization_spaces": False,
            }
        )
    )
