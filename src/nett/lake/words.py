"""What a scan of a lake says, in lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MOST = 20


def as_lines(told: Mapping[str, Any]) -> list[str]:
    """The findings for people: tables, stages, the largest children, warnings."""
    tables = {t["name"]: t for t in told["tables"]}
    edges = [e for e in told["edges"] if e["containment"] == 1]
    children = {e["child"] for e in edges}
    lines = [f"{told['path']}: {len(tables):,} tables, {told['bytes']:,} bytes"]
    lines += [
        f"  {s['name']:<8} {s['pairs']:>12,} pairs left {s['bytes_read']:>16,} bytes read {s['seconds']:>8.2f} s"
        for s in told["stages"]
    ]
    held = sum(tables[c]["bytes"] for c in children)
    lines.append(f"{len(edges):,} containments; {len(children):,} tables ({held:,} bytes) are contained in another")
    largest = sorted(children, key=lambda c: (-tables[c]["bytes"], c))
    for child in largest[:_MOST]:
        parents = [e["parent"] for e in edges if e["child"] == child]
        more = f" and {len(parents) - 1:,} more" if len(parents) > 1 else ""
        lines.append(f"  {child} ({tables[child]['bytes']:,} bytes) is in {parents[0]}{more}")
    if len(largest) > _MOST:
        lines.append(f"  and {len(largest) - _MOST:,} more (--json FILE has all)")
    lines += [f"warning: {w['table']}: {w['warning']}: {w['why']}" for w in told["warnings"]]
    return lines
