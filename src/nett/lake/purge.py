"""The quarantine emptied after a while."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from nett.core.errors import Refused, UsageError
from nett.core.registry import Between, method


@method(papers=["P03"], title="Purge a lake's quarantine", grain="stream", guarantee="exact", extra="lake",
        command=True)  # fmt: skip
def purge(
    assets: Sequence[str],
    *,
    after: str = "7d",
    yes: bool = False,
    memory_limit: str | None = None,
    threads: Annotated[int, Between(1, None)] | None = None,
) -> dict[str, Any]:
    """Delete the bytes of tables that have been in a lake's quarantine for a while; they can still be rebuilt.

    Args:
        after: how long they must have been there, such as 7d, 12h, 0d.
        yes: do it; without, say what would go.
        memory_limit: of the engine, such as 512MB; beyond it spills to disk.
        threads: of the engine.
    When to use: when everyone who read the tables has gone on without them.
    When not: while you may want back the very bytes, and not only the same rows and types.
    Guarantee: exact: each table is rebuilt from its parents once more, and compared, before its bytes go.
    Cost: reads each parent twice, writes each table once into a temporary file.
    Source: no paper.
    """
    from nett.lake.keep_rules import age
    from nett.lake.purging import Purging
    from nett.lake.quarantine import Quarantine

    paths = [assets] if isinstance(assets, str) else list(assets)
    if len(paths) != 1:
        raise UsageError("name one lake", where="lake/purge", hint="nett lake purge PATH --after 7d")
    if not Path(paths[0]).is_dir():
        raise Refused("there is no such folder", where=paths[0])
    quarantine = Quarantine(Path(paths[0]))
    run = Purging(quarantine, age(after))
    due, waiting = run.due()
    if yes and quarantine.own.is_dir():
        with quarantine.changing():
            due, waiting = run.due()
            run.purge(due, memory=memory_limit, threads=threads)
    size = sum(e.record.deletion.bytes for e in due)
    lines = [f"{'purged' if yes else 'would purge'}: {e.name} ({e.record.deletion.bytes:,} bytes)" for e in due]
    lines.append(
        f"{'freed' if yes else 'would free'} {size:,} bytes of {len(due):,} tables; {len(waiting):,} wait longer"
    )
    lines += ["Nothing was done. Do it: the same command with --yes"] if due and not yes else []
    return {
        "purged": [e.name for e in due], "waiting": [e.name for e in waiting], "bytes": size, "done": yes, "say": lines,
    }  # fmt: skip
