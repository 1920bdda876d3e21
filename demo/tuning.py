"""A short fine-tune of all weights: AdamW, a warm-up of a few steps, then down to nothing in a straight line."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@final
@dataclass(frozen=True)
class Course:
    """How long and how hard is trained. ``rate`` was the best of 2e-5 … 4e-4 on other passages than those shown."""

    steps: int = 16
    batch: int = 2
    length: int = 128  # tokens of a passage
    rate: float = 1e-4
    warm_up: int = 3
    clip: float = 1.0  # largest norm of a gradient
    seed: int = 0

    @property
    def told(self) -> str:
        return ", ".join(f"{k.replace('_', '-')} {v:g}" for k, v in asdict(self).items())


def rate_at(course: Course, step: int) -> float:
    """Learning rate of a step, counted from zero; never zero."""
    return course.rate * min((step + 1) / course.warm_up, (course.steps - step) / course.steps, 1.0)


def fine_tune(model: Any, ids: Any, course: Course, tick: Callable[[int, float, float], None]) -> None:
    """Train ``model`` in place on ids (steps * batch, length); ``tick`` gets step, loss and seconds of each step."""
    import torch

    torch.manual_seed(course.seed)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.rate, betas=(0.9, 0.99), weight_decay=0.0)
    for step, some in enumerate(ids.split(course.batch)):
        began = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(course, step)
        loss = model(some, labels=some, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), course.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tick(step, float(loss.detach()), time.monotonic() - began)
    model.eval()


def load(folder: Path) -> Any:
    """The model of a folder, computing in float32 whatever type is stored."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def save(model: Any, folder: Path, base: Path) -> None:
    """Write ``model`` in bfloat16, which it is afterwards, with the base's tokenizer."""
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
