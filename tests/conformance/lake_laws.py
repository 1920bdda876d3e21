"""Laws of the lake room (stated in nett.lake.protocol): looking changes nothing, twice says the same, a dry run changes
nothing, what was deleted comes back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from conformance.measure_laws import Law, answered
from nett.core.registry import Card
from support.lakes import write_lake


def laws(card: Card) -> list[Law]:
    return [says_the_same_twice, looking_changes_nothing]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder, by path, with the time of its last change."""
    return {str(f): (f.read_bytes(), f.stat().st_mtime_ns) for f in sorted(folder.rglob("*")) if f.is_file()}


def said(card: Card, paths: list[str]) -> Any:
    """The answer without what it took: its lines for people tell seconds, and a cache spares reading."""
    return {k: _effortless(v) for k, v in answered(card, paths).items() if k != "say"}


def _effortless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _effortless(v) for k, v in value.items() if k != "bytes_read"}
    return [_effortless(v) for v in value] if isinstance(value, list) else value


def says_the_same_twice(card: Card, folder: Path) -> None:
    """Also of files that are old enough to be kept in a cache."""
    paths = write_lake(folder / "lake")
    for file in (folder / "lake").rglob("*"):
        os.utime(file, (1_700_000_000, 1_700_000_000))
    assert said(card, paths) == said(card, paths)


def looking_changes_nothing(card: Card, folder: Path) -> None:
    paths = write_lake(folder / "lake")
    before = contents(folder)
    said(card, paths)
    assert contents(folder) == before
