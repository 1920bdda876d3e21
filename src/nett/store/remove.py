"""Taking a model out of a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nett.core.errors import UsageError
from nett.core.registry import method


@method(title="Remove a model from a store", grain="corpus", guarantee="exact", command=True)
def remove(assets: Sequence[str], *, dry_run: bool = False) -> dict[str, Any]:
    """Take models out of a store, named as STORE/MODEL. Their objects stay until nett store gc collects them.

    Args:
        dry_run: say what would be taken out, and do nothing.
    When to use: for models that are not needed any more; what others rest on is kept for them.
    When not: to save space at once: run nett store gc afterwards.
    Guarantee: exact. Until they are collected, a removed model's objects serve the next nett store add of it.
    Cost: none.
    """
    from nett.core.receipt import locate
    from nett.store.library import Library

    if not assets:
        raise UsageError("name what to remove", where="store/remove", hint="nett store remove STORE/MODEL")
    lines = []
    for asset in assets:
        root, name = locate(Path(asset))
        if not name:
            raise UsageError(f"{asset} does not name a model of a store", where="store/remove", hint="STORE/MODEL")
        with Library.open(root) as library:
            model = library.model(name)
            if not dry_run:
                with library.writing():
                    library.drop(name)
        lines.append(f"{'would take out' if dry_run else 'taken out'}: {name}, {model.nbytes:,} bytes")
    return {"say": [*lines, f"Its bytes are freed by: nett store gc {root}"]}
