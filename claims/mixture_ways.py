"""Ways to make a trained mixture smaller, judged by the next byte on text that it never saw: half of it chooses settings,
half judges once (P37, P60)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import nett
from claims.mixture_bed import Recipe, bed
from claims.mixture_texts import KINDS
from nett.core.cards import find_card
from nett.core.checkpoint import open_checkpoint
from nett.experts import engine

WINDOW = 128
NAME = "mixture of code, prose and sums"
SIZES = {"hidden 32": Recipe(hidden=32, width=64, layers=2, experts=8, steps=500, rows=12, text=300_000)}


@dataclass(frozen=True)
class Subject:
    """A trained mixture and its texts, int64 windows by kind."""

    size: str
    seed: int
    folder: Path

    @property
    def cell(self) -> tuple[str, str]:
        return NAME, self.size

    def windows(self, split: str) -> dict[str, Tensor]:
        """``learn``, ``val`` or ``test``: for each kind ``[n, WINDOW]``."""
        found = {}
        for kind in KINDS:
            name = "learn" if split == "learn" else "judge"
            held = np.frombuffer((self.folder / f"{name}-{kind}.txt").read_bytes(), np.uint8).astype(np.int64)
            half = len(held) // 2
            part = held if split == "learn" else held[:half] if split == "val" else held[half:]
            rows = part[: len(part) // WINDOW * WINDOW].reshape(-1, WINDOW)
            found[kind] = torch.from_numpy(rows.copy())
        return found

    def text(self, into: Path, windows: int = 96) -> Path:
        """A file of learned text, the kinds in turn, for methods that look at one."""
        learned = self.windows("learn")
        rows = [learned[kind][i * 7] for i in range(windows // len(KINDS)) for kind in KINDS]
        file = into / "text.txt"
        file.write_bytes(b"".join(bytes(row.tolist()) for row in rows))
        return file

    def model(self) -> Any:
        return nett.load(self.folder, as_model=True).float().eval()


def subjects(seeds: Sequence[int]) -> Iterator[Subject]:
    for size, recipe in SIZES.items():
        for seed in seeds:
            yield Subject(size, seed, bed(replace(recipe, seed=seed)))


@torch.no_grad()
def outcomes(model: Any, windows: dict[str, Tensor]) -> tuple[dict[str, np.ndarray], float]:
    """Per kind whether each next byte is the likeliest one; and nats a byte, kinds counting alike."""
    right, nats = {}, []
    for kind, rows in windows.items():
        hits, lost = [], []
        for part in torch.split(rows, 64):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1].log_softmax(-1)
            hits.append((logits.argmax(-1) == part[:, 1:]).reshape(-1))
            lost.append(-logits.gather(-1, part[:, 1:, None]).reshape(-1))
        right[kind] = np.asarray(torch.cat(hits).numpy())
        nats.append(float(torch.cat(lost).double().mean()))
    return right, float(np.mean(nats))


def smaller(subject: Subject, method: str, text: Path, **settings: Any) -> tuple[Any, int]:
    """The model that ``nett experts METHOD`` writes of it, loaded again, and its bytes."""
    router = settings.pop("router", "rows")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        engine.run(
            find_card(f"experts/{method}"),
            [str(subject.folder)],
            settings,
            out=out,
            text=text,
            length=WINDOW,
            router=router,
            threads=1,
        )
        with open_checkpoint(out) as written:
            size = written.nbytes
        return nett.load(out, as_model=True).float().eval(), size
