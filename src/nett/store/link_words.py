"""A plan of linking, or what was done of it, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nett.core.edge import Edge, ranked
from nett.core.shown import shown
from nett.store.link_plan import NEEDS, SHARED, Pair, Plan


def as_json(plan: Plan, done: Sequence[Pair] | None, receipt: Path, command: str) -> dict[str, Any]:
    """``done`` is None for a plan."""
    pairs = plan.pairs if done is None else done
    groups = [
        {
            "sha256": kept.sha256,
            "bytes": kept.stat.st_size,
            "kept": kept.path,
            "copies": [
                {
                    "path": p.copy.path,
                    "names": [n.path for n in p.copy.names],
                    "how": p.how,
                    "allowed": p.asked,
                    "bytes_freed": p.freed,
                }
                for p in pairs
                if p.kept is kept
            ],
        }
        for kept, pairs in _by_kept(pairs)
    ]
    return {
        "applied": done is not None,
        "groups": groups,
        "bytes_freed": sum(p.freed for p in pairs if p.asked),
        "bytes_freed_with_hardlinks": sum(p.freed for p in pairs),
        "edges": [e.as_json() for e in edges(pairs, command)],
        "refused": [{"path": path, "reason": why} for path, why in plan.refused],
        "notes": notes(plan, done is not None),
        "receipt": str(receipt) if done else None,
    }


def edges(pairs: Sequence[Pair], command: str) -> list[Edge]:
    """One edge a copy, the largest gain first. No time to rebuild: the copy goes on being readable."""
    return ranked(
        Edge("equal_file", p.copy.path, (p.kept.path,), "store/link", p.freed, 0.0, 0.0, "exact", command)
        for p in pairs
    )


def notes(plan: Plan, applied: bool) -> list[str]:
    """What a person should know beside the list."""
    found = list(plan.tree.notes)
    if left := len(plan.tree.leftovers):
        what = "1 file" if left == 1 else f"{left:,} files"
        found.append(f"{what} left by a run that was killed: {'removed' if applied else '--apply removes them'}")
    if not applied and any(p.how == "hardlink" for p in plan.pairs):
        found.append(SHARED)
    return found


def as_lines(plan: Plan, done: Sequence[Pair] | None, receipt: Path, command: str) -> list[str]:
    """Groups with the file that is kept and what becomes of the others; refusals; notes; what to do next."""
    pairs = plan.pairs if done is None else done
    lines = []
    for kept, copies in _by_kept(pairs):
        lines.append(f"kept      {shown(kept.path)}  {kept.stat.st_size:,} bytes")
        for pair in copies:
            lines += [f"  {pair.how}  {shown(name.path)}" for name in pair.copy.names]
    if plan.refused:
        lines.append("left as they are, though equal to another file:" if pairs else "left as they are:")
        lines += [f"  {shown(path)}: {why}" for path, why in plan.refused]
    lines += [f"note: {note}" for note in notes(plan, done is not None)]
    if done:
        lines.append(f"{_count(done)} now share the bytes of an equal one; {_freed(done):,} bytes were freed")
        lines.append(f"Receipt: {shown(receipt)}   Check: nett verify {shown(receipt)}")
        lines.append(f"Undo it: nett restore {shown(receipt)}")
    elif done is not None or not pairs:
        lines.append("No equal files that could share their bytes were found; nothing was changed.")
    else:
        lines += _outlook(plan, command)
    return lines


def _outlook(plan: Plan, command: str) -> list[str]:
    asked, more = [p for p in plan.pairs if p.asked], [p for p in plan.pairs if not p.asked]
    lines = []
    if asked:
        lines.append(f"{_count(asked)} would share the bytes of an equal one: {_freed(asked):,} bytes freed")
    if more:
        lines.append(f"{_count(more)} ({_freed(more):,} bytes) {NEEDS}")
    return [*lines, "Nothing was changed. To do it:", f"  {command}"]


def _by_kept(pairs: Sequence[Pair]) -> list[tuple[Any, list[Pair]]]:
    groups: dict[Any, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.kept, []).append(pair)
    return list(groups.items())


def _freed(pairs: Sequence[Pair]) -> int:
    return sum(p.freed for p in pairs)


def _count(pairs: Sequence[Pair]) -> str:
    return "1 file" if len(pairs) == 1 else f"{len(pairs):,} files"
