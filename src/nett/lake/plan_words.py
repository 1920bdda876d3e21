"""What plans, and what is done by them, say in lines."""

from __future__ import annotations

import shlex
from pathlib import Path

from nett.lake.make_plan import PARENT, Made

_MOST = 20


def plan_lines(made: Made, path: str, out: Path | None) -> list[str]:
    """Costs, the largest deletions, why contained tables stay, and what to do next."""
    plan, cost = made.plan, made.plan.cost
    freed = sum(d.bytes - d.rebuild.bytes for d in plan.delete)
    lines = [
        f"{path}: {made.tables:,} tables, {made.bytes:,} bytes; {len(plan.delete):,} tables ({freed:,} bytes) can go",
        f"cost over {plan.prices.months:g} months: {cost.plan:,.4g} (all kept {cost.keep_all:,.4g}, greedy"
        f" {cost.greedy:,.4g}, no plan below {cost.bound:,.4g}; gap {cost.gap:.2%} of what could be saved)",
    ]
    for one in sorted(plan.delete, key=lambda d: (-d.bytes, d.table.name))[:_MOST]:
        stored = f", selector {one.rebuild.bytes:,} bytes" if one.rebuild.stored else ""
        lines.append(
            f"  {one.table.name} ({one.bytes:,} bytes): {one.rebuild.kind} of {', '.join(one.rebuild.parents)}{stored}"
        )
    if len(plan.delete) > _MOST:
        lines.append(f"  and {len(plan.delete) - _MOST:,} more")
    other = {name: why for name, why in plan.kept.items() if why != PARENT}
    if plan.kept:
        lines.append(f"{len(plan.kept):,} tables that others contain stay, {len(plan.kept) - len(other):,} as parents")
        lines += [f"  {name}: {why}" for name, why in list(other.items())[:_MOST]]
        lines += [f"  and {len(other) - _MOST:,} more"] if len(other) > _MOST else []
    lines += [f"warning: {w.table}: {w.what}: {w.why}" for w in made.warnings]
    if made.unknown:
        lines.append(f"warning: access counts of tables that are not here: {', '.join(made.unknown[:5])}")
    if plan.delete and out is None:
        lines.append(f"Write it: nett lake plan {shlex.quote(path)} --out PLAN.json")
    elif plan.delete:
        lines.append(f"Look at it, then: nett lake apply {shlex.quote(str(out))} --yes")
    return lines
