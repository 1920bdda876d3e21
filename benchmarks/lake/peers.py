"""datasketch, in an environment of its own: MinHashLSHEnsemble over hashes of rows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nett.core.errors import NettError, Refused

HOME = Path(__file__).resolve().parent.parent / ".venv-lake-peers"
WORKER = Path(__file__).resolve().parent / "ensemble_worker.py"
PACKAGES = {"datasketch": "2.0.0", "pandas": "3.1.1"}


def python(say: Callable[[str], None]) -> Path:
    """The interpreter that has the peer: the one that NETT_LAKE_PEERS names, or that of our own environment."""
    named = os.environ.get("NETT_LAKE_PEERS")
    if named:
        if not Path(named).is_file():
            raise Refused("is named by NETT_LAKE_PEERS, but there is no such file", where=named)
        return Path(named)
    if not (HOME / "done").is_file():
        say(f"making an environment for {', '.join(PACKAGES)} in {HOME}")
        shutil.rmtree(HOME, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
        pip = [str(HOME / "bin" / "pip"), "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *(f"{n}=={v}" for n, v in PACKAGES.items())], check=True)
        (HOME / "done").touch()
    return HOME / "bin" / "python"


def ensemble(
    interpreter: Path, lake: Path, ignore: str, num_perm: int, num_part: int, threshold: float, compare: str
) -> Any:
    """{"pairs": [[child, parent]], "wall": s, "cpu": s} of one run, all of it counted but the start of Python."""
    words: list[str | Path] = [interpreter, WORKER, lake, ignore, str(num_perm), str(num_part), str(threshold), compare]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    if done.returncode:
        raise NettError(f"the peer failed: {done.stderr[-600:]}", where=interpreter)
    return json.loads(done.stdout.splitlines()[-1])
