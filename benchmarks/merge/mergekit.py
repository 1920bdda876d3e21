"""mergekit 0.1.5, in an environment of its own: what a user would otherwise merge with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nett.core.errors import Refused

HOME = Path(__file__).resolve().parent.parent / ".venv-mergekit"
TORCH, MERGEKIT = "torch==2.13.0", "mergekit==0.1.5"
ASK = "import importlib.metadata as m; print(*(m.version(p).partition('+')[0] for p in ('mergekit', 'torch')))"
RECIPE = """merge_method: ties
base_model: ./base
models:
- model: ./tuned1
  parameters: {weight: 1.0, density: 0.2}
- model: ./tuned2
  parameters: {weight: 1.0, density: 0.2}
parameters: {normalize: true, lambda: 1.0}
"""


def executable(say: Callable[[str], None], *, make: bool) -> Path | None:
    """``mergekit-yaml``: the one that NETT_MERGEKIT names, or that of our own environment, made if ``make``."""
    named = os.environ.get("NETT_MERGEKIT")
    if named:
        if not Path(named).is_file():
            raise Refused("is named by NETT_MERGEKIT, but there is no such file", where=named)
        return Path(named)
    found = HOME / "bin" / "mergekit-yaml"
    if not found.is_file() and make:
        say(f"making an environment for {MERGEKIT} in {HOME}")
        shutil.rmtree(HOME, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
        for package in (TORCH, MERGEKIT):
            subprocess.run([HOME / "bin" / "pip", "install", "-q", package], check=True)
    return found if found.is_file() else None


def versions_of(mergekit: Path) -> dict[str, str]:
    """What it runs with."""
    asked = subprocess.run([mergekit.parent / "python", "-c", ASK], check=True, capture_output=True, text=True)
    mine, torch = asked.stdout.split()
    return {"mergekit": mine, "its torch": torch}
