"""The room's methods, by where they attack the cost of a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nett.core.errors import UsageError
from nett.core.registry import method


@method(papers=["P43"], title="Methods for mixtures of experts, by the survey's taxonomy", kind="measure", guarantee="exact",
        command=True)  # fmt: skip
def list(assets: Sequence[str], *, taxonomy: bool = False, json: Path | None = None) -> dict[str, Any]:
    """List the methods of this room, with --taxonomy by level: model, system, hardware; and what is not covered.

    Args:
        taxonomy: in the order of the survey, with all kinds of work, also those for which there is no method.
        json: file for the same as a registry for programs: an entry for each kind of work, with its methods.
    When to use: to find the methods that attack the same cost, or to see that there is none.
    When not: for their options: nett show experts/METHOD.
    Guarantee: exact. Each method says its place in its own docstring; a test refuses one that says none.
    Cost: none; nothing is imported.
    Place: beside the levels: it lists them
    Source: P43, its levels and branches as the abstract and the survey's repository name them.
    """
    from nett.core.cards import all_cards
    from nett.core.report.answer import answered
    from nett.core.staging import check_folders
    from nett.experts.taxonomy import BESIDE, placed, registry

    if assets:
        raise UsageError(
            f"takes no asset, {assets[0]!r} given", where="experts/list", hint="nett experts list --taxonomy"
        )
    check_folders(json)
    cards = [c for c in all_cards() if c.room == "experts" and not c.hidden]
    found, beside = placed(cards)

    def lines(_: Any) -> Sequence[str]:
        said = []
        level = branch = ""
        if not taxonomy:
            width = max(len(c.name) for c in cards)
            return [f"{c.name:<{width}}  {', '.join(c.papers) or '-':<8}  {c.summary}" for c in cards]
        for leaf, mine in found.items():
            if leaf.path[0] != level:
                level, branch = leaf.path[0], ""
                said.append(level)
            if leaf.path[1] != branch:
                branch = leaf.path[1]
                said.append(f"  {branch}")
            names = ", ".join(f"{c.name} ({', '.join(c.papers)})" if c.papers else c.name for c in mine)
            said.append(f"    {leaf.path[2]:<26}{names or f'none: {leaf.elsewhere}'}")
        return [*said, BESIDE, *(f"    {c.name}" for c in beside)]

    told = {"methods": [c.name for c in cards], "taxonomy": registry(cards), "beside": [c.name for c in beside]}
    return answered(told, lines, json=json)
