"""How methods stand against their rivals: one shared frontier of quality against bytes and time.

Claims leave points ``{method, asset, bytes, quality, spread, seconds}``; ``asset`` is ``KIND/BED`` and quality is
only compared on the same bed. A point is dominated where another gains something on it (fewer bytes, less time, or
quality beyond the spread of both) and loses nothing. The frontier holds the trivial answers, such as keeping
everything apart or the plain average.

*recommended*: dominated on no bed, and against every trivial answer better in quality or in bytes. *niche*: on the
frontier of some bed, but not that. *dominated*: on no frontier. *unproven*: no measured point with its present code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import hypot
from typing import Any, final

from nett.core.cards import all_cards
from nett.core.registry import Card
from nett.core.results import claim_result, claimed_papers, is_current

UNPROVEN = "unproven"
# Differences below these are not told apart: file headers; a clock on a busy machine.
BYTES_SLACK, SECONDS_SLACK = 1.01, 1.5


@final
@dataclass(frozen=True)
class Point:
    """One measured method on one bed. ``quality``: larger is better, ``spread`` its standard deviation."""

    method: str
    asset: str
    bytes: float
    quality: float
    spread: float
    seconds: float
    trivial: bool = False

    def as_json(self) -> dict[str, Any]:
        record = asdict(self)
        if not self.trivial:
            del record["trivial"]
        return record

    def finer_than(self, other: Point) -> bool:
        """Whether its quality is higher by more than both spreads together."""
        return self.quality - other.quality > hypot(self.spread, other.spread)

    def smaller_than(self, other: Point) -> bool:
        return self.bytes * BYTES_SLACK < other.bytes

    def faster_than(self, other: Point) -> bool:
        return self.seconds * SECONDS_SLACK < other.seconds

    def gains_on(self, other: Point) -> bool:
        """Whether there is anything at all to be had by taking this and not ``other``."""
        return self.finer_than(other) or self.smaller_than(other) or self.faster_than(other)


def dominated(point: Point, rivals: Iterable[Point]) -> bool:
    """Whether some rival gains on the point, which gains nothing on it."""
    return any(r.gains_on(point) and not point.gains_on(r) for r in rivals)


def stands(points: Sequence[Point]) -> dict[str, dict[str, str]]:
    """Method -> kind of asset -> its standing, from all points."""
    beds: dict[str, list[Point]] = {}
    for point in points:
        beds.setdefault(point.asset, []).append(point)
    seen: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    for asset, inside in beds.items():
        for point in inside:
            rivals = [p for p in inside if p.method != point.method]
            trivial = [p for p in rivals if p.trivial]
            # Time alone recommends nothing: doing nothing takes none.
            better = all(point.finer_than(t) or point.smaller_than(t) for t in trivial)
            worth = bool(trivial) and better and not point.trivial
            here = (dominated(point, rivals), worth)
            seen.setdefault((point.method, asset.partition("/")[0]), []).append(here)
    table: dict[str, dict[str, str]] = {}
    for (method, kind), found in seen.items():
        if all(lost for lost, _ in found):
            word = "dominated"
        elif all(not lost and worth for lost, worth in found):
            word = "recommended"
        else:
            word = "niche"
        table.setdefault(method, {})[kind] = word
    return table


def measured_points(cards: Sequence[Card]) -> list[Point]:
    """All points of stored claims whose method's code has not changed; of two of one method and bed, the first."""
    by_key = {c.key: c for c in cards}
    points: dict[tuple[str, str], Point] = {}
    for paper in claimed_papers():
        outcome = claim_result(paper, by_key)
        if outcome is None:
            continue
        keys = outcome.record["code"]
        current = {name: name in by_key and is_current(by_key[name], key) for name, key in keys.items()}
        for record in outcome.record["frontier"]:
            point = Point(**record)
            if current.get(point.method, point.trivial):
                points.setdefault((point.method, point.asset), point)
    return list(points.values())


def beyond_measured(card: Card, nbytes: int) -> list[str]:
    """What a receipt should say where an output is larger than anything that a claim measured the method on."""
    measured = [p.bytes for p in measured_points([card]) if p.method == card.key]
    if not measured:
        return [f"no claim has measured {card.key} with its present code"]
    if nbytes <= BYTES_SLACK * max(measured):
        return []
    return [
        f"{card.key} was measured on outputs of up to {max(measured):,.0f} bytes; this one has {nbytes:,}, "
        "and what was found there need not hold here (nett show, docs/claims.md)"
    ]


def standings(cards: Sequence[Card] | None = None) -> dict[str, str]:
    """Card key -> standing, for all cards (those given, or read) that a claim has measured. Several kinds of asset:
    the best of them."""
    order = ("recommended", "niche", "dominated")
    cards = all_cards() if cards is None else cards
    known = {c.key for c in cards}
    found = stands(measured_points(cards))
    return {m: min(kinds.values(), key=order.index) for m, kinds in found.items() if m in known}


def standing_of(card_key: str) -> str:
    """``recommended``, ``niche``, ``dominated`` or ``unproven``."""
    return standings().get(card_key, UNPROVEN)
