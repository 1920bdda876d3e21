"""What children do to lakes. They come from a forge of their own, which has the libraries of tables imported."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from support.forge import Forge
from support.work import counted as _counted
from support.work import unprivileged


@cache
def lake_forge() -> Forge:
    """The forge of this test process for lakes."""
    return Forge("support.lake_work:warm")


def warm() -> None:
    """Import what the commands import; no database is opened, since its threads would not survive a fork."""
    import importlib

    from nett.core.progress import report

    report.style = "quiet"
    for name in (
        "nett.cli.app",
        "nett.cli.room",
        "support.cli",
        "decimal",
        "duckdb",
        "numpy",
        "pyarrow.compute",
        "pyarrow.csv",
        "pyarrow.parquet",
        "pyroaring",
        "yaml",
    ):
        importlib.import_module(name)
    for name in ("make_plan", "applying", "purging", "restoring", "plan_words", "scanning"):
        importlib.import_module(f"nett.lake.{name}")
    for name in ("apply", "purge", "restore", "plan"):
        importlib.import_module(f"nett.lake.{name}")


def counted(**arguments: Any) -> int:
    """:func:`support.work.counted` of one of the functions below."""
    import support.work

    for work in (lake_apply, lake_purge, lake_restore):
        setattr(support.work, work.__name__, work)
    return _counted(**arguments)


def lake_apply(*, plan: str) -> None:
    """``nett lake apply PLAN --yes``, on one thread so that its steps come in one order."""
    from nett.lake.apply import apply

    apply([plan], yes=True, threads=1)


def lake_purge(*, lake: str) -> None:
    """``nett lake purge LAKE --after 0d --yes``."""
    from nett.lake.purge import purge

    purge([lake], after="0d", yes=True, threads=1)


def lake_restore(*, lake: str) -> None:
    """``nett lake restore --all --lake LAKE``."""
    from nett.lake.restore import restore

    restore([], all=True, lake=Path(lake), threads=1)


def lake_as_nobody(*, words: Sequence[str]) -> tuple[int, str, str]:
    """``nett lake …`` as the user ``nobody``, who may not be able to import what is not yet imported."""
    return unprivileged(words=words)
