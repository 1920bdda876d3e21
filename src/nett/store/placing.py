"""Files and folders that appear whole, and survive a power cut."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from nett.core.staging import sync_folder


def make_folders(path: Path) -> None:
    """A folder and those above it; what is made survives a power cut."""
    fresh = [f for f in (path, *path.parents) if not f.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in fresh:
        sync_folder(folder.parent)


def write_whole(path: Path, content: bytes, scratch: Path) -> None:
    """Write a small file so that it appears whole, and survives a power cut."""
    temporary = scratch / uuid.uuid4().hex
    make_folders(path.parent)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
