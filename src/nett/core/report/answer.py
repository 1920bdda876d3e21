"""The end of a command that only looks: its findings as JSON and as a page where that was asked for, and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nett.core.report.page import Page
from nett.core.staging import put_file


def put_json(file: Path, told: Mapping[str, Any]) -> None:
    """Findings as JSON, whole or not at all."""
    put_file(Path(file), (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())


def answered(
    told: Mapping[str, Any],
    words: Callable[[Mapping[str, Any]], Sequence[str]],
    *,
    json: Path | None = None,
    html: Path | None = None,
    page: Callable[[Mapping[str, Any]], Page] | None = None,
) -> dict[str, Any]:
    """``told`` and its lines under ``say``; written to ``json``, and as ``page`` to ``html``."""
    if json is not None:
        put_json(json, told)
    if html is not None and page is not None:
        page(told).write(html)
    return {**told, "say": list(words(told))}
