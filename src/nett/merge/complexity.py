"""Layer-wise feature complexity (P38): the share of a layer's units that remain, for each beta, as files and charts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nett.core.layers import natural
from nett.merge.feature_tree import FeatureTree

NAME = "feature_complexity"
_MOST_LINES = 12


def complexity_files(
    trees: Sequence[FeatureTree], betas: Sequence[float], remaining: Mapping[str, int]
) -> dict[str, bytes]:
    """The complexity for programs (JSON) and for people (a table of text)."""
    layers = {
        t.group: {"units": t.size, "kept": remaining[t.group], "complexity": t.complexity(betas)}
        for t in _sorted(trees)
    }
    record = {"betas": list(betas), "layers": layers, "mean": _mean(trees, betas)}
    return {f"{NAME}.json": json.dumps(record, indent=1).encode() + b"\n", f"{NAME}.txt": _table(trees, betas).encode()}


def complexity_charts(
    trees: Sequence[FeatureTree], betas: Sequence[float], beta: float, remaining: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Lines over beta (of many layers, the mean and some of them), and what remains of each layer now."""
    ordered = _sorted(trees)
    step = -(-len(ordered) // _MOST_LINES)
    mean = _mean(trees, betas)
    series = {"mean of all units": [[b, m] for b, m in zip(betas, mean, strict=True)]}
    for tree in ordered[::step]:
        series[tree.group] = [[b, c] for b, c in zip(betas, tree.complexity(betas), strict=True)]
    note = f"One layer in {step} is drawn; {NAME}.json has all." if step > 1 else ""
    return [
        {"kind": "lines", "title": "Layer-wise feature complexity", "xlabel": "beta", "ylabel": "units that remain",
         "series": series, "note": note},
        {"kind": "bars", "title": f"Units that remain at beta {beta:g}", "unit": "%",
         "rows": [[t.group, 100 * remaining[t.group] / t.size] for t in ordered]},
    ]  # fmt: skip


def _sorted(trees: Sequence[FeatureTree]) -> list[FeatureTree]:
    return sorted(trees, key=lambda t: natural(t.group))


def _mean(trees: Sequence[FeatureTree], betas: Sequence[float]) -> list[float]:
    """The share of all units that remain."""
    units = sum(t.size for t in trees)
    return [sum(t.size - t.merges(b) for t in trees) / units for b in betas]


def _table(trees: Sequence[FeatureTree], betas: Sequence[float]) -> str:
    width = max(5, *(len(t.group) for t in trees))
    lines = [f"{'layer':<{width}} {'units':>7} " + " ".join(f"{b:>6g}" for b in betas)]
    for tree in _sorted(trees):
        shares = " ".join(f"{c:>6.3f}" for c in tree.complexity(betas))
        lines.append(f"{tree.group:<{width}} {tree.size:>7,} {shares}")
    means = " ".join(f"{m:>6.3f}" for m in _mean(trees, betas))
    total = sum(t.size for t in trees)
    return "\n".join([*lines, f"{'all':<{width}} {total:>7,} {means}", ""])
