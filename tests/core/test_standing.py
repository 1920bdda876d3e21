"""Standing, from points on a shared frontier: worked examples by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nett.core import results, standing
from nett.core.cards import find_card
from nett.core.standing import Point, beyond_measured, dominated, measured_points, standing_of, standings, stands
from support.toys import Toys, record, toys


def point(method: str, quality: float, nbytes: float = 100, *, bed: str = "models/a", **more: Any) -> Point:
    return Point(method, bed, nbytes, quality, more.pop("spread", 1.0), more.pop("seconds", 1.0), **more)


KEPT, MEAN = point("kept", 90, 800, seconds=0, trivial=True), point("mean", 60, trivial=True, seconds=0.1)


def test_what_is_a_gain() -> None:
    a, b = point("a", 70), point("b", 68)
    assert a.finer_than(b) and not b.finer_than(a)
    assert not point("a", 69.4).finer_than(b)  # within the spread of both: sqrt(1 + 1)
    assert point("a", 70, 100).smaller_than(point("b", 70, 102)) and not point("a", 70, 100).smaller_than(
        point("b", 70, 101)
    )
    assert point("a", 70, seconds=1.0).faster_than(point("b", 70, seconds=1.6))
    assert not point("a", 70, seconds=1.0).faster_than(point("b", 70, seconds=1.4))


def test_dominated_needs_a_rival_that_gains_and_loses_nothing() -> None:
    worse = point("worse", 60)
    assert dominated(worse, [point("r", 70)])
    assert not dominated(worse, [point("r", 70, 200)])  # larger
    assert not dominated(worse, [point("r", 70, seconds=9)])  # slower
    assert dominated(worse, [point("r", 60, 50)]) and dominated(worse, [point("r", 60, seconds=0.1)])
    assert not dominated(worse, [point("r", 60)]) and not dominated(worse, [])


def test_the_four_words() -> None:
    good, small = point("good", 75), point("small", 60.5, 40)
    slow, bad = point("slow", 75, seconds=9), point("bad", 50)
    found = stands([KEPT, MEAN, good, small, slow, bad])
    assert found["good"] == {"models": "recommended"}
    assert found["small"] == {"models": "recommended"}  # smaller than every trivial answer
    assert found["slow"] == {"models": "dominated"}  # by good, which does the same in less time
    assert found["bad"] == {"models": "dominated"}
    assert found["kept"] == {"models": "niche"} and found["mean"] == {"models": "niche"}


def test_no_better_than_a_trivial_answer_is_not_recommended() -> None:
    """On the frontier by being faster than all that is as good, yet nothing that doing nothing would not give."""
    found = stands([KEPT, point("mean", 60, trivial=True, seconds=5), point("same", 60.5, seconds=1)])
    assert found["same"] == {"models": "niche"}
    assert stands([point("alone", 60)])["alone"] == {"models": "niche"}  # without a trivial rival nothing is shown


def test_beds_and_kinds() -> None:
    """Dominated on one bed of two is niche; kinds of assets are told apart; quality of two beds is not compared."""
    here = [KEPT, MEAN, point("m", 75), point("n", 50)]
    there = [
        point(p.method, q, p.bytes, bed="models/b", seconds=p.seconds, trivial=p.trivial)
        for p, q in zip(here, (90, 60, 50, 75), strict=True)
    ]
    tables = [point("m", 10, 5, bed="tables/c"), point("kept", 10, 50, bed="tables/c", seconds=0, trivial=True)]
    found = stands([*here, *there, *tables])
    assert found["m"] == {"models": "niche", "tables": "recommended"} and found["n"] == {"models": "niche"}


def test_points_of_changed_code_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy: Toys = toys(tmp_path, monkeypatch)
    toy.add("one"), toy.add("two")
    monkeypatch.setattr(standing, "all_cards", lambda: list(toy.cards.values()))
    assert standings() == {} and standing_of("merge/one") == "unproven"
    points = [KEPT, MEAN, point("merge/one", 75), point("merge/two", 50)]
    results.store_claim("P10", record(frontier=[p.as_json() for p in points]), toy.cards)
    again = [point("merge/one", 1), point("merge/two", 99, bed="models/b")]
    results.store_claim("P11", record(frontier=[p.as_json() for p in again]), toy.cards)
    found = measured_points(list(toy.cards.values()))
    assert [(p.method, p.asset, p.quality) for p in found] == [
        ("kept", "models/a", 90), ("mean", "models/a", 60), ("merge/one", "models/a", 75), ("merge/two", "models/a", 50),
        ("merge/two", "models/b", 99),
    ]  # fmt: skip
    assert standings() == {"merge/one": "recommended", "merge/two": "niche"}
    toy.change("one")
    assert standing_of("merge/one") == "unproven" and standing_of("merge/two") == "niche"


def test_trivial_points_of_methods_that_changed_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy: Toys = toys(tmp_path, monkeypatch)
    toy.add("one"), toy.add("two")
    mean = point("merge/two", 60, trivial=True)
    results.store_claim("P10", record(frontier=[KEPT.as_json(), mean.as_json()]), toy.cards)
    assert [p.method for p in measured_points(list(toy.cards.values()))] == ["kept", "merge/two"]
    toy.change("two")
    assert [p.method for p in measured_points(list(toy.cards.values()))] == ["kept"]


def test_every_standing_shown_rests_on_trivial_rivals() -> None:
    """Of this repository: no bed without a trivial answer to compare with."""
    from nett.core.cards import all_cards

    points = measured_points(all_cards())
    for asset in {p.asset for p in points}:
        assert any(p.trivial for p in points if p.asset == asset), asset


def test_a_receipt_warns_beyond_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        point("merge/ties", 70, 800),
        point("merge/ties", 71, 2000, bed="models/b"),
        point("merge/linear", 1, 9e9),
    ]
    monkeypatch.setattr(standing, "measured_points", lambda cards: points)
    card = find_card("merge/ties")
    assert beyond_measured(card, 2000) == []
    (said,) = beyond_measured(card, 268_000_000)
    assert "up to 2,000 bytes" in said and "268,000,000" in said
    assert "no claim has measured merge/slerp" in beyond_measured(find_card("merge/slerp"), 1)[0]
