"""The store room's engine: what ``nett restore``, ``nett verify`` and ``nett.load`` find by an output's receipt."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nett.core.checkpoint import Checkpoint
from nett.core.errors import Refused

_MODULES = {"add": "nett.store.restoring", "link": "nett.store.link"}


def _module(receipt: Mapping[str, Any], folder: Path) -> Any:
    name = _MODULES.get(receipt["method"])
    if name is None:
        raise Refused(f"was made by store/{receipt['method']}, which this nett does not know", where=folder)
    return importlib.import_module(name)


def restore(folder: Path, receipt: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Undo, or give back a model of a store."""
    found: dict[str, Any] = _module(receipt, folder).restore(folder, receipt, **options)
    return found


def verify(folder: Path, receipt: Mapping[str, Any], **options: Any) -> list[dict[str, Any]]:
    """Check what the receipt promises."""
    found: list[dict[str, Any]] = _module(receipt, folder).verify(folder, receipt, **options)
    return found


def open_inside(folder: Path, receipt: Mapping[str, Any], name: str) -> Checkpoint:
    """A model of a store as a checkpoint that is read from the store."""
    from nett.store.reading import open_stored

    return open_stored(folder, name)
