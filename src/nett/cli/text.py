"""Tables and paths as a terminal shows them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def columns(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> list[str]:
    """Lines of a table whose columns line up; those named in ``right`` end at one edge."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    return [
        "  ".join(
            cell.rjust(width) if head in right else cell.ljust(width)
            for cell, width, head in zip(row, widths, headers, strict=True)
        ).rstrip()
        for row in (headers, *rows)
    ]


def common_folder(paths: Sequence[str]) -> str:
    """The folder in which all ``paths`` lie, with its last slash; empty where a name in it would save nothing."""
    absolute = [p for p in paths if Path(p).is_absolute()]
    if len(absolute) < 2:
        return ""
    folder = os.path.join(os.path.commonpath([os.path.dirname(p) for p in absolute]), "")
    return "" if folder == os.sep else folder


def figure(value: object) -> str:
    """A float with four digits, whole numbers with thousands separated, a dash for None."""
    if value is None or isinstance(value, bool):
        return "-" if value is None else str(value)
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def count(number: int, one: str) -> str:
    """``1 checkpoint``, ``2 checkpoints``."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {one}s"
