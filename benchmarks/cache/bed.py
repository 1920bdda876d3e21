"""The bed of the cache room's benchmarks: SmolLM2-135M in float32 on the chapters of Python's language reference, and
stories260K on TinyStories."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import spend
from benchmarks.store.bed import once
from demo.model import find_model
from demo.texts import language_reference

from nett.core.tiny import write_llama

Say = Callable[[str], None]
STORIES, WORDS = "models/stories260K", "data/text/tinystories_valid_excerpt.txt"


@dataclass(frozen=True)
class Beds:
    """name -> (model folder, text file); why others are left out."""

    found: dict[str, tuple[Path, Path]]
    skipped: dict[str, str]


def build(folder: Path, say: Say) -> Beds:
    """What is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    packaged, text = folder / "smollm2", _text(folder)
    if not packaged.is_dir():
        say("writing SmolLM2-135M in float32")
        spend(["nett", "convert", str(find_model()), str(packaged), "--dtype", "float32", "--quiet"], folder)
    beds = Beds({"SmolLM2-135M": (packaged, text)}, {})
    assets = os.environ.get("NETT_ASSETS")
    if assets and (Path(assets) / STORIES).is_dir():
        beds.found["stories260K"] = (Path(assets) / STORIES, Path(assets) / WORDS)
    else:
        beds.skipped["stories260K"] = "NETT_ASSETS is not set" if not assets else f"NETT_ASSETS has no {STORIES}"
    return beds


def build_pico(folder: Path) -> Beds:
    """A Llama of some kilobytes."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "pico"
    once(made, lambda to: write_llama(to, layers=2, hidden=64, inter=128, vocab=256, dtype="F32"))
    return Beds({"pico": (made, _text(folder))}, {})


def _text(folder: Path) -> Path:
    file = folder / "reference.txt"
    if not file.is_file():
        found = language_reference()
        documents: dict[str, Any] = {**found.train, **found.held_out}
        file.write_text("\n\n".join(documents[name] for name in sorted(documents)), encoding="utf-8")
    return file
