"""Small language models on real text, for claims on what makes them smaller: held-out likelihoods, window by window.

Two beds with stories260K's tokenizer (512 tokens): the published model of 260,032 weights with the TinyStories excerpt,
and a deeper one that the claim trains on tinyshakespeare. Text is cut in three by place: train, val, test. A window of
stories is the beginning of one, behind the token that begins a text, as that model knows it.
"""

from __future__ import annotations

import copy
import functools
import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn import functional

from claims.outcomes import Gap, spread
from nett.core.errors import NettError

T = TypeVar("T")
LENGTH = 128
BEGIN, ONCE = 1, "Once upon a time"
MODEL = "models/stories260K"
TEXTS = {"stories": "data/text/tinystories_valid_excerpt.txt", "plays": "data/text/tinyshakespeare.txt"}
PARTS = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}
TRAINING = {"steps": 250, "batch": 8, "lr": 3e-3}  # of the model that is trained here
SIZES = {
    "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
    "vocab_size": 512, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A language model and its text. ``windows``: part -> int64 [n, LENGTH]."""

    name: str
    size: str
    model: Any
    windows: Mapping[str, torch.Tensor]

    def fresh(self) -> Any:
        """A copy of the model that may be changed."""
        return copy.deepcopy(self.model)

    def surprise(self, model: Any, part: str, most: int = 120) -> np.ndarray:
        """Negative log likelihood in nats a token, one number for each of at most ``most`` windows."""
        found = []
        with torch.no_grad():
            for ids in self.windows[part][:most].split(20):
                logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
                each = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
                found.append(each.view(len(ids), -1).double().mean(dim=1).numpy())
        return np.concatenate(found)


def lacking() -> str | None:
    """Why there are no beds, or None."""
    named = os.environ.get("NETT_ASSETS")
    if not named:
        return "NETT_ASSETS is not set"
    missing = [p for p in (MODEL, *TEXTS.values()) if not (Path(named) / p).exists()]
    return f"NETT_ASSETS has no {missing[0]}" if missing else None


def stories() -> Reader:
    """stories260K with the TinyStories excerpt; its perplexity there is checked against what is known of it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(_assets() / MODEL, dtype=torch.float32).eval()
    bed = Reader("stories260K", "5 blocks", model, _windows("stories"))
    known = float(np.exp(bed.surprise(model, "test").mean()))
    if not 3 < known < 10:
        raise NettError(
            f"stories260K has perplexity {known:.2f} on its text; about 6 is known of the beginnings of stories"
        )
    return bed


@functools.cache
def plays() -> Reader:
    """A Llama of eight blocks, trained here on tinyshakespeare."""
    from transformers import LlamaConfig, LlamaForCausalLM

    windows = _windows("plays")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SIZES, bos_token_id=1, eos_token_id=2))
    random = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TRAINING["lr"], weight_decay=0.01)
    steps = int(TRAINING["steps"])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = TRAINING["lr"] * min(1, (step + 1) / 30, 1.05 - step / steps)
        ids = windows["train"][torch.randint(len(windows["train"]), (int(TRAINING["batch"]),), generator=random)]
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        optimizer.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return Reader("plays", "8 blocks", model.eval().requires_grad_(False), windows)


def _assets() -> Path:
    return Path(os.environ["NETT_ASSETS"])


@functools.cache
def _windows(text: str) -> Mapping[str, torch.Tensor]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(_assets() / MODEL)
    words = (_assets() / TEXTS[text]).read_text(encoding="utf-8")

    def tokens(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    if text == "stories":
        told = ([BEGIN, *tokens(ONCE + rest.replace("\n\n", "\n"))] for rest in words.split(ONCE)[1:])
        rows = [ids[:LENGTH] for ids in told if len(ids) >= LENGTH]
    else:
        ids = tokens(words)
        rows = [ids[at : at + LENGTH] for at in range(0, len(ids) - LENGTH + 1, LENGTH)]
    whole = torch.tensor(rows, dtype=torch.int64)
    return {part: whole[int(a * len(whole)) : int(b * len(whole))] for part, (a, b) in PARTS.items()}


def gap(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> Gap:
    """``b`` minus ``a`` in hundredths of a nat a token, so that above 0 is: ``a`` is better. One array a seed, of the same
    windows; the error joins the spread over seeds with that over windows, which seeds share."""
    rows = [100 * (y - x) for x, y in zip(a, b, strict=True)]
    means = [float(r.mean()) for r in rows]
    windows = float(np.mean([r.std(ddof=1) / sqrt(len(r)) for r in rows]))
    return Gap(float(np.mean(means)), hypot(spread(means) / sqrt(len(means)), windows))


def side_by_side(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """What the jobs return, each in a process of its own; a job that fails is an error here."""
    how = multiprocessing.get_context("fork")
    running = []
    for job in jobs:
        end, other = how.Pipe(duplex=False)
        process = how.Process(target=_send, args=(job, other))
        process.start()
        other.close()
        running.append((process, end))
    answers = [end.recv() for _, end in running]
    for process, _ in running:
        process.join()
    failed = [answer for fine, answer in answers if not fine]
    if failed:
        raise NettError(failed[0])
    return [answer for _, answer in answers]


def _send(job: Callable[[], Any], end: Any) -> None:
    try:
        end.send((True, job()))
    except BaseException:
        end.send((False, traceback.format_exc()))


def linears(model: Any) -> dict[str, torch.nn.Linear]:
    """The linear layers within the blocks."""
    found = {n: m for n, m in model.named_modules() if type(m) is torch.nn.Linear}
    return {n: m for n, m in found.items() if "lm_head" not in n}


def change(better: np.ndarray, than: np.ndarray) -> tuple[float, float]:
    """Mean of the paired difference and its standard error."""
    gap = better - than
    return float(gap.mean()), float(gap.std(ddof=1) / np.sqrt(len(gap)))


def shares(values: np.ndarray, seeds: Sequence[int]) -> dict[int, float]:
    """Means over as many disjoint shares of the windows as there are seeds."""
    return {seed: float(values[k :: len(seeds)].mean()) for k, seed in enumerate(seeds)}
