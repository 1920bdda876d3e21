"""A small language model of code, trained here, and text for it: Python's own modules, and arithmetic told in prose.

A module belongs to one part only (train, calibration, test), and so does a task of GSM8K. The tokenizer is a byte-level
BPE of 1,024 pieces, made of the training text. A window is a run of tokens of one part.
"""

from __future__ import annotations

import gzip
import json
import os
import sysconfig
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

PROSE = {"train": "data/text/gsm8k_train_first2000.jsonl.gz", "test": "data/text/gsm8k_test.jsonl"}
LENGTH = 128
PACKAGES = ("asyncio", "collections", "concurrent", "email", "http", "importlib", "json", "logging", "multiprocessing",
            "unittest", "urllib", "xml", "xmlrpc", "wsgiref", "sqlite3", "curses", "dbm")  # fmt: skip
SHARES = {"train": 0.8, "calibration": 0.1, "test": 0.1}  # of the modules, by their names
TRAINING = {"steps": 900, "batch": 12, "lr": 3e-3, "prose": 0.25}
SIZES = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 1024, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """part -> text; ``modules`` of a part are those of the standard library that it holds."""

    code: Mapping[str, str]
    prose: Mapping[str, str]
    modules: Mapping[str, int]


def lacking() -> str | None:
    """Why there is no bed, or None."""
    named = os.environ.get("NETT_ASSETS")
    if not named:
        return "NETT_ASSETS is not set"
    missing = [p for p in PROSE.values() if not (Path(named) / p).exists()]
    return f"NETT_ASSETS has no {missing[0]}" if missing else None


def texts() -> Texts:
    """The standard library of the running Python by module, and GSM8K's tasks with their solutions."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        [*root.glob("*.py"), *(f for p in PACKAGES for f in (root / p).rglob("*.py") if "test" not in f.parts)]
    )
    parts: dict[str, list[str]] = {part: [] for part in SHARES}
    for file in files:
        place = zlib.crc32(file.relative_to(root).as_posix().encode()) / 2**32
        text = file.read_text(encoding="utf-8", errors="ignore")
        if 500 < len(text) < 200_000:
            parts["train" if place < 0.8 else "calibration" if place < 0.9 else "test"].append(text)
    folder = Path(os.environ["NETT_ASSETS"])
    told = [_task(line) for line in gzip.decompress((folder / PROSE["train"]).read_bytes()).decode().splitlines()]
    held = [_task(line) for line in (folder / PROSE["test"]).read_text(encoding="utf-8").splitlines()]
    prose = {"train": told[: len(told) * 4 // 5], "calibration": told[len(told) * 4 // 5 :], "test": held}
    return Texts(
        {k: "\n".join(v) for k, v in parts.items()},
        {k: "\n\n".join(v) for k, v in prose.items()},
        {k: len(v) for k, v in parts.items()},
    )


def _task(line: str) -> str:
    found = json.loads(line)
    return f"{found['question']}\n{found['answer']}"


def write_model(folder: Path, given: Texts, steps: int | None = None, say: Any = lambda text: None) -> Path:
    """Train the model and write it with its tokenizer as a folder of transformers. Returns the folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(given)
    streams = [torch.tensor(tokenizer(t["train"], verbose=False)["input_ids"]) for t in (given.code, given.prose)]
    say(f"{len(streams[0]):,} tokens of code and {len(streams[1]):,} of prose to train on")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SIZES, bos_token_id=0, eos_token_id=0, pad_token_id=0))
    random = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TRAINING["lr"], weight_decay=0.01)
    steps, batch = steps or int(TRAINING["steps"]), int(TRAINING["batch"])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = TRAINING["lr"] * min(1, (step + 1) / 50, 1.05 - step / steps)
        rows = []
        for _ in range(batch):
            stream = streams[int(random.random() < TRAINING["prose"])]
            at = int(random.integers(len(stream) - LENGTH))
            rows.append(stream[at : at + LENGTH])
        ids = torch.stack(rows)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step + 1 == steps:
            say(f"step {step}: {float(loss.detach()):.3f} nats a token")
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(given: Texts) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    made = ByteLevelBPETokenizer()
    lines = given.code["train"][:2_000_000].splitlines(keepends=True) + given.prose["train"].splitlines(keepends=True)
    made.train_from_iterator(lines, vocab_size=int(SIZES["vocab_size"]), special_tokens=["<end>"], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, eos_token="<end>", bos_token="<end>", pad_token="<end>"
    )
