"""A folder of this test process, for models that many tests read; removed at its end."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def shared_folder() -> Path:
    """Made on first use."""
    folder = Path(tempfile.mkdtemp(prefix="nett-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
