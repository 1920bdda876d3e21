"""What a scan of a lake says, in lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nett.core.shown import shown

_MOST = 20
_ROWS, _WIDE = 3, 200


def as_lines(told: Mapping[str, Any]) -> list[str]:
    """The findings for people: tables, stages, the largest children, warnings."""
    tables = {t["name"]: t for t in told["tables"]}
    edges = [e for e in told["edges"] if e["containment"] == 1]
    children = {e["child"] for e in edges}
    lines = [f"{shown(told['path'])}: {len(tables):,} tables, {told['bytes']:,} bytes"]
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
        lines.append(f"  {shown(child)} ({tables[child]['bytes']:,} bytes) is in {shown(parents[0])}{more}")
    if len(largest) > _MOST:
        lines.append(f"  and {len(largest) - _MOST:,} more (--json FILE has all)")
    near = sorted((e for e in told["edges"] if e["containment"] < 1), key=lambda e: -e["containment"])
    lines += [line for edge in near[:_MOST] for line in _near(edge)]
    if len(near) > _MOST:
        lines.append(f"  and {len(near) - _MOST:,} more nearly contained")
    lines += [f"warning: {shown(w['table'])}: {w['warning']}: {shown(w['why'])}" for w in told["warnings"]]
    return lines


def _near(edge: Mapping[str, Any]) -> list[str]:
    """A pair that is nearly an edge, and a few of the rows that differ; ASCII, whatever is in them."""
    share = f"{100 * edge['containment']:.4g} %"
    lines = [f"  {share} of {shown(edge['child'])} is in {shown(edge['parent'])}; {edge['missing']:,} rows are not:"]
    for lacking in edge["lacking"][:_ROWS]:
        text = json.dumps(lacking["row"])
        lines.append(f"    {text if len(text) <= _WIDE else text[:_WIDE] + '…'}")
    return lines
