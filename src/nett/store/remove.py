"""Taking a model out of a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nett.core.errors import UsageError
from nett.core.registry import method


@method(title="Remove a model from a store", grain="corpus", guarantee="exact", extra="store", command=True)
def remove(assets: Sequence[str], *, dry_run: bool = False) -> dict[str, Any]:
    """Take models out of a store, named as STORE/MODEL. Their objects stay until nett store gc collects them.

    Differences of other models may rest on the removed one's objects: nett store gc codes those anew, and says
    beforehand (--dry-run), as this command does, what that takes.

    Args:
        dry_run: say what would be taken out and what collecting it would come to, and do nothing.
    When to use: for models that are not needed any more.
    When not: to save space at once: run nett store gc afterwards.
    Guarantee: exact. Until they are collected, a removed model's objects serve the next nett store add of it.
    Cost: none; with --dry-run the objects' headers and samples of some are read.
    Source: no paper.
    """
    from nett.core.receipt import locate
    from nett.store.library import Library

    if not assets:
        raise UsageError("name what to remove", where="store/remove", hint="nett store remove STORE/MODEL")
    lines: list[str] = []
    named: dict[Path, list[str]] = {}
    for asset in assets:
        root, name = locate(Path(asset))
        if not name:
            raise UsageError(f"{asset} does not name a model of a store", where="store/remove", hint="STORE/MODEL")
        with Library.open(root) as library:
            if dry_run:
                nbytes: int | None = library.model(name).nbytes
            else:
                with library.writing():
                    nbytes = library.drop(name)
        named.setdefault(root, []).append(name)
        known = f"{nbytes:,} bytes" if nbytes is not None else "whose record was not readable"
        lines.append(f"{'would take out' if dry_run else 'taken out'}: {name}, {known}")
    for root, names in named.items():
        lines += _would_free(root, names) if dry_run else []
        lines.append(f"Its bytes are freed by: nett store gc {root}")
    return {"say": lines}


def _would_free(root: Path, names: Sequence[str]) -> list[str]:
    """What nett store gc would do if the named models were not there."""
    from nett.store.holdings import closure, holdings
    from nett.store.library import Library
    from nett.store.recoding import dying_of, plan_moves

    with Library.open(root) as library:
        models = list(library.models())
        rest = [m for m in models if m.name not in names]
        needed = set().union(*(m.objects for m in rest)) if rest else set()
        gone = set().union(*(m.objects for m in models)) - needed
        held = holdings(library, needed)
        dying = dying_of(held, gone, needed, set())
        plan = plan_moves(library, rest, held, dying, "smaller")
        alone = sum(held[d].stored for d in (gone & held.keys()) - closure(held, needed))
    return [*plan.say(would=True), f"nett store gc would free {alone + plan.freed:,} bytes of it, in all"]
