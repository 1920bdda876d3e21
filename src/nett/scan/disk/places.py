"""Where models lie on a machine: the known places, from their environment variables and defaults."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from nett.core.caches import hub_cache, hub_home

_MOST_SETTINGS = 1 << 24  # bytes


@final
@dataclass(frozen=True)
class Place:
    """A folder to look in. ``why``: the variable or setting that names it, empty for a default."""

    kind: str
    path: str
    why: str = ""

    @property
    def exists(self) -> bool:
        return os.path.isdir(self.path)


def known_places() -> list[Place]:
    """The hub cache, Ollama, LM Studio, torch hub and the working folder, whether they are there or not."""
    found = [
        Place("Hugging Face", hub_cache(), _first("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")),
        Place("Hugging Face chunks", os.path.expanduser(_given("HF_XET_CACHE") or os.path.join(hub_home(), "xet")),
              _first("HF_XET_CACHE", "HF_HOME", "XDG_CACHE_HOME")),
    ]  # fmt: skip
    if own := _given("OLLAMA_MODELS"):
        found.append(Place("Ollama", os.path.expanduser(own), "OLLAMA_MODELS"))
    else:
        found.append(Place("Ollama", os.path.expanduser("~/.ollama/models")))
        found.append(Place("Ollama", "/usr/share/ollama/.ollama/models"))
    found += _lm_studio()
    torch = _given("TORCH_HOME") or os.path.join(_given("XDG_CACHE_HOME") or "~/.cache", "torch")
    found.append(
        Place("torch hub", os.path.expanduser(os.path.join(torch, "hub")), _first("TORCH_HOME", "XDG_CACHE_HOME"))
    )
    found.append(Place("working folder", os.getcwd()))
    return _once(found)


def given_places(folders: Iterable[str | os.PathLike[str]]) -> list[Place]:
    """The folders that the user names."""
    return _once(Place("given", os.path.expanduser(os.fspath(f))) for f in folders)


def _given(variable: str) -> str:
    """The variable's value; an empty one is as good as none."""
    return os.environ.get(variable, "")


def _first(*variables: str) -> str:
    return next((v for v in variables if _given(v)), "")


def _once(places: Iterable[Place]) -> list[Place]:
    """Each folder once, links in its path resolved."""
    found: dict[str, Place] = {}
    for place in places:
        real = os.path.realpath(place.path)
        found.setdefault(real, Place(place.kind, real, place.why))
    return list(found.values())


def _lm_studio() -> list[Place]:
    """Where LM Studio's settings say, if they do and can be read; else its two defaults."""
    found = []
    for home in ("~/.lmstudio", "~/.cache/lm-studio"):
        settings = Path(os.path.expanduser(home)) / "settings.json"
        try:
            if settings.stat().st_size <= _MOST_SETTINGS:
                said = json.loads(settings.read_bytes())
                moved = said.get("downloadsFolder") if isinstance(said, dict) else None
                if isinstance(moved, str) and moved and "\0" not in moved:
                    found.append(Place("LM Studio", os.path.expanduser(moved), "settings.json"))
        except (OSError, ValueError, RecursionError):
            pass
        found.append(Place("LM Studio", os.path.expanduser(f"{home}/models")))
    return found
