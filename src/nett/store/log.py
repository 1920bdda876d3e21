"""What was done to a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from nett.core.registry import Between, method


@method(title="Log of a store", kind="measure", grain="corpus", guarantee="exact", command=True)
def log(assets: Sequence[str], *, last: Annotated[int, Between(0)] = 0) -> dict[str, Any]:
    """Print what was added, removed and collected, oldest first.

    Args:
        last: only so many lines, the newest; 0 for all.
    When to use: to see what happened to a store.
    When not: to see what is there now; nett store ls does that.
    Guarantee: exact.
    Cost: reads one small file.
    Source: no paper.
    """
    import json

    from nett.store.library import only_store

    file = only_store(assets, "log") / "log.jsonl"
    lines, entries = [], []
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            entry = json.loads(text)
            more = ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in entry.items()
                             if k not in ("time", "what") and v is not None)  # fmt: skip
            lines.append(f"{entry['time']}  {entry['what']}: {more}")
            entries.append(entry)
        except (ValueError, KeyError, AttributeError):
            continue  # a line that a kill cut in two
    return {"say": lines[-last:], "entries": entries[-last:]}
