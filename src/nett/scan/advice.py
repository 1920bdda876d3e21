"""Which merge to try, told only from what claims have measured; and nothing where they have measured nothing alike."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from statistics import median
from typing import Any

from nett.core.cards import all_cards
from nett.core.results import claim_result, claimed_papers
from nett.core.standing import Point, measured_points

_COSINE = "mean cosine of two task vectors"  # as claims call it, in percent
_SLACK = 0.02  # of a cosine: beyond the measured range by more is another case


def advise(
    base: str,
    tuned: Sequence[str],
    *,
    cosine: float | None,
    moved_by_two: float,
    far: Sequence[str],
    nbytes: int,
    still: Sequence[str] = (),
    twins: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """``{method, reason, command}``; method and command are None where no measurement speaks for one.

    Args:
        cosine: mean cosine of two task vectors.
        moved_by_two: elements that two or more of the fine-tunes moved.
        far: fine-tunes that moved too far from the base to count as such.
        nbytes: size of what a merge would write.
        still: fine-tunes that change nothing of the base.
        twins: pairs of fine-tunes that make the same changes.
    """
    if far:
        return _none(
            f"{', '.join(far)}: too far from {base} to be a fine-tune of it, and merges of such are not measured"
        )
    if still and len(still) == len(tuned):
        return _none(f"all {len(tuned)} equal the base, and so would any merge of them")
    if still:
        return _none(f"{_listed(still)} the base, so there is nothing in {_it(still)} to merge: leave {_it(still)} out")
    if twins:
        one, other = twins[0]
        more = f", as do {len(twins) - 1} more pairs" if len(twins) > 1 else ""
        return _none(f"{one} and {other} make the same changes{more}: a merge would count them twice, so leave one out")
    if cosine is None:
        return _none("one of their changes is too small for its direction to be told")
    if moved_by_two == 0:
        reason = "no element is moved by two of them, so that their sum changes none of what each has learnt"
        return _some("merge/task_arithmetic", reason, base, tuned, " --scale 1")
    best = _best_everywhere(_single_models())
    if best is None:
        return _none("no one merge is the best on all the beds that claims have measured with the present code")
    method, beds, clear, largest = best
    low, high, scales = _case()
    if low is None or high is None:
        return _none("no claim tells how alike the fine-tunes were that it merged")
    if not low - _SLACK <= cosine <= high + _SLACK:
        return _none(
            f"merges were measured for fine-tunes with a mean cosine of {low:.3f} to {high:.3f}; these have {cosine:.3f},"
            " and what held there need not hold here"
        )
    reason = (
        f"the best single model on {beds} of {beds} measured beds (by more than the spread on {clear}), whose fine-tunes"
        f" had a mean cosine of {low:.3f} to {high:.3f}, as these ({cosine:.3f})"
    )
    if nbytes > largest:
        reason += f"; the largest model there had {largest:,.0f} bytes, so it may be otherwise at this size"
    options = ""
    if method == "merge/task_arithmetic" and scales:
        options = f" --scale {median(scales):.2g}"
        reason += f"; the scale is the median of those tuned there ({min(scales):.2g} to {max(scales):.2g}): tune yours"
    return _some(method, reason, base, tuned, options)


def _listed(paths: Sequence[str]) -> str:
    return f"{', '.join(paths)} {'equals' if len(paths) == 1 else 'equal'}"


def _it(paths: Sequence[str]) -> str:
    return "it" if len(paths) == 1 else "them"


def _none(reason: str) -> dict[str, Any]:
    return {"method": None, "reason": reason, "command": None}


def _some(method: str, reason: str, base: str, tuned: Sequence[str], options: str) -> dict[str, Any]:
    models = " ".join(shlex.quote(path) for path in tuned)
    command = f"nett merge {method.partition('/')[2]} --base {shlex.quote(base)} {models}{options} --out OUT"
    return {"method": method, "reason": reason, "command": command}


def _single_models() -> list[Point]:
    """Measured points of merges that give one model of fine-tunes; those of whole networks were measured on others."""
    cards = all_cards()
    single = {c.key for c in cards if c.room == "merge" and list(c.outputs) == ["model"] and c.grain != "model"}
    return [p for p in measured_points(cards) if p.method in single]


def _best_everywhere(points: Sequence[Point]) -> tuple[str, int, int, float] | None:
    """(method, beds, beds where it leads by more than the spread, bytes of its largest output) of the one method that
    no other single model beats in quality on any bed; None where there is none, or where nothing was compared."""
    beds: dict[str, list[Point]] = {}
    for point in points:
        beds.setdefault(point.asset, []).append(point)
    compared = {asset: inside for asset, inside in beds.items() if len(inside) > 1}
    leaders = {max(inside, key=lambda p: p.quality).method for inside in compared.values()}
    if len(leaders) != 1:
        return None
    (leader,) = leaders
    clear, largest = 0, 0.0
    for inside in compared.values():
        mine = next(p for p in inside if p.method == leader)
        clear += all(mine.finer_than(p) for p in inside if p.method != leader)
        largest = max(largest, mine.bytes)
    return leader, len(compared), clear, largest


def _case() -> tuple[float | None, float | None, list[float]]:
    """What kind of fine-tunes the claims merged: lowest and highest mean cosine, and the scales tuned for their sums."""
    cosines: list[float] = []
    scales: list[float] = []
    by_key = {c.key: c for c in all_cards()}
    for paper in claimed_papers():
        outcome = claim_result(paper, by_key)
        for figure in outcome.record["figures"] if outcome is not None else ():
            if figure.get("what") == _COSINE:
                cosines.append(figure["value"] / 100)
            found = re.search(r"scale ([0-9.]+)", figure.get("note") or "")
            if figure.get("what") == "task arithmetic" and found:
                scales.append(float(found[1]))
    return (min(cosines), max(cosines), scales) if cosines else (None, None, scales)
