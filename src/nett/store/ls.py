"""What a store holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nett.core.registry import method


@method(title="List a store", kind="measure", grain="corpus", guarantee="exact", command=True)
def ls(assets: Sequence[str], *, json: bool = False) -> Any:
    """List the models of a store: bytes, bytes that only this model needs, base, and when it was added.

    Args:
        json: a list of records instead of text.
    When to use: to see what is there, and what removing a model would free.
    When not: to see whether it is whole; nett store check does that.
    Guarantee: exact.
    Cost: reads the models' records and the objects' headers, no tensors.
    Source: no paper.
    """
    from nett.store.checking import with_bases
    from nett.store.library import Library, only_store
    from nett.store.objects import object_path

    root = only_store(assets, "ls")
    with Library.open(root) as library:
        models = list(library.models())
        needs = {m.name: with_bases(library, m.objects) for m in models}
        users: dict[str, int] = {}
        for digests in needs.values():
            for digest in digests:
                users[digest] = users.get(digest, 0) + 1
        size = {d: object_path(root, d).stat().st_size for d in users if library.objects.has(d)}
    rows = [
        {
            "name": m.name,
            "bytes": m.nbytes,
            "own_bytes": sum(size.get(d, 0) for d in needs[m.name] if users[d] == 1),
            "base": m.base,
            "files": len(m.files),
            "added": m.added,
        }
        for m in models
    ]
    if json:
        return rows
    stored, held = sum(size.values()), sum(m.nbytes for m in models)
    share = f" ({100 * stored / held:.1f} %)" if held else ""
    width = max((len(m.name) for m in models), default=4)
    lines = [f"{'name':<{width}}  {'bytes':>15}  {'its own':>15}  base"] if models else []
    lines += [f"{r['name']:<{width}}  {r['bytes']:>15,}  {r['own_bytes']:>15,}  {r['base'] or '-'}" for r in rows]
    return {"say": [*lines, f"{root}: {len(models)} model(s), {held:,} bytes kept in {stored:,}{share}"]}
