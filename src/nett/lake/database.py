"""DuckDB for the lake, out of core."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from nett.core.checkpoint.writer import byte_size
from nett.core.errors import missing_extra


def open_database(
    file: str | None = None, *, memory: str | None = None, threads: int | None = None
) -> tuple[Any, tempfile.TemporaryDirectory[str]]:
    """(a database in memory or in the file of this name, the folder in which it lies and spills). ``memory``: such as
    512MB; UsageError where that is no size."""
    try:
        import duckdb
    except ImportError as error:
        raise missing_extra("duckdb", "lake", "the lake room") from error
    config: dict[str, Any] = {"memory_limit": f"{max(1, byte_size(memory) // 1000)}KB"} if memory else {}
    config |= {"threads": threads} if threads else {}
    folder = tempfile.TemporaryDirectory(prefix="nett-lake-")
    config["temp_directory"] = os.path.join(folder.name, "spill")
    return duckdb.connect(os.path.join(folder.name, file) if file else ":memory:", config=config), folder
