"""What the arms of a study come to: each against the original, and at each width each text against each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nett.core.paired_tests import adjusted, mcnemar
from nett.core.quality import estimate
from nett.weights.study_arm import bools

LEVEL = 0.05  # of the false discovery rate


def _answers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Question set -> right or not, of everything that is either."""
    found = {f"next token, {n}": bools(bits) for n, bits in record["hits"].items()}
    names = {"parses": "parses", "passes": "passes its tests"}
    return found | {said: bools(record[kind]) for kind, said in names.items() if kind in record}


def compared(found: Mapping[Any, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every pair that is compared with its exact test; ``q``: p adjusted for all of them together."""
    original = next(arm for arm in found if not arm.bits)
    arms = [arm for arm in found if arm.bits]
    pairs = [(original, arm) for arm in arms]
    pairs += [
        (a, b)
        for a, b in itertools.combinations(arms, 2)
        if (a.bits, a.draw) == (b.bits, b.draw) and a.source != b.source
    ]
    rows = []
    for first, second in pairs:
        mine, theirs = _answers(found[first]), _answers(found[second])
        for asked in mine:
            names = {"first": first.source if first.bits else "original", "second": second.source}
            test = asdict(mcnemar(mine[asked], theirs[asked]))
            rows.append({"bits": second.bits, "draw": second.draw, "asked": asked, **names, **test})
    for row, q in zip(rows, adjusted([r["p"] for r in rows]), strict=True):
        row["q"], row["differs"] = q, q < LEVEL
    return [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()} for r in rows]


def summary(found: Mapping[Any, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a width and text of calibration, over its draws: perplexities, with the paired interval of their ratio to
    the original's (window by window, means over the draws), rates, and how they spread over the draws."""
    original = next(record for arm, record in found.items() if not arm.bits)
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for arm, record in found.items():
        groups.setdefault((arm.bits, arm.source), []).append(record)
    rows = []
    for (bits, source), records in groups.items():
        row: dict[str, Any] = {"bits": bits, "source": source, "draws": len(records)}
        for text, first in original["nll"].items():
            each = np.array([r["nll"][text] for r in records])
            change = estimate(each.mean(0) - np.array(first))
            row[f"perplexity {text}"] = _exp(float(each.mean()))
            row[f"ratio {text}"] = [_exp(v) for v in (change.mean, change.low, change.high)]
            row[f"spread {text}"] = _spread(each.mean(1))
        for asked in _answers(original):
            rates = [float(_answers(r)[asked].mean()) for r in records]
            row[asked] = float(np.mean(rates))
        if bits:
            row["bits_a_weight"] = 8 * records[0]["nbytes"] / records[0]["weights"]
        rows.append(row)
    return rows


def _exp(value: float) -> float:
    return math.exp(min(80.0, value))


def _spread(values: Any) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def differing(rows: Sequence[Mapping[str, Any]], **which: Any) -> tuple[int, int]:
    """(how many of the comparisons with these entries differ, how many there are)."""
    chosen = [r for r in rows if all(r[k] == v for k, v in which.items())]
    return sum(r["differs"] for r in chosen), len(chosen)
