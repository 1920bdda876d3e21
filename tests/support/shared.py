"""What is made once in a run, whichever of its processes needs it first: models and figures that many tests read."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

RUN = "NETT_TEST_RUN"  # names the run's folder in the environment of its workers and their children


@cache
def shared_folder() -> Path:
    """The folder of this run; ``conftest.py`` makes it and removes it at the end."""
    return Path(os.environ[RUN])


def begin_run() -> Path:
    """Make the folder of a run that begins in this process."""
    folder = tempfile.mkdtemp(prefix="nett-tests-")
    os.environ[RUN] = folder
    return Path(folder)


def made_once(name: str, make: Callable[[Path], Any]) -> Any:
    """What ``make(folder)`` returned (anything that JSON keeps), called in the first process that asks; the others wait
    for it."""
    folder = shared_folder() / name
    folder.mkdir(exist_ok=True)
    with (folder / "made.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = folder / "made.json"
        if not answer.exists():
            answer.write_text(json.dumps(make(folder)))
        return json.loads(answer.read_text())
