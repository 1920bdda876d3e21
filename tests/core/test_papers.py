"""The catalogue, and the state of each paper computed from cards and stored results."""

from __future__ import annotations

from pathlib import Path

import pytest

from nett.core import papers, results
from nett.core.cards import all_cards
from nett.core.errors import UsageError
from nett.core.papers import Paper, catalogue, find_paper, paper_rows, row_of
from nett.core.registry import ROOMS
from support.toys import Toys, record, toys

PAPER = Paper("P10", "A title", "merge", ("one", "two"), "An idea.", "It works when it works.")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toys:
    return toys(tmp_path, monkeypatch)


def state(toy: Toys, paper: Paper = PAPER) -> tuple[str, str]:
    row = row_of(paper, list(toy.cards.values()))
    return row.status, row.claim


def test_the_catalogue_is_whole() -> None:
    found = catalogue()
    assert [p.id for p in found] == sorted({p.id for p in found}) and len(found) == 81
    for paper in found:
        assert paper.top_room in ROOMS and paper.room.count(".") <= 1
        assert paper.title and paper.methods and len(set(paper.methods)) == len(paper.methods)
        assert paper.idea.endswith(".") and paper.works_when.endswith(".") and len(paper.idea) > 60
        assert all(m.isidentifier() and m.islower() for m in paper.methods), paper.id
    assert len({p.title for p in found}) == len({p.idea for p in found}) == 81


def test_names_of_methods_belong_to_one_paper_each_in_a_room() -> None:
    names = [(p.top_room, m) for p in catalogue() for m in p.methods]
    assert len(set(names)) == len(names)


def test_find_paper() -> None:
    assert find_paper("p10").methods == ("ties",)
    with pytest.raises(UsageError, match=r"'P99' is not a paper; ids go from P01 to P\d\d") as caught:
        find_paper("P99")
    assert "nett papers" in str(caught.value)
    with pytest.raises(UsageError, match="'ties-merging' is not a paper"):
        find_paper("ties-merging")


def test_planned_building_works(toy: Toys) -> None:
    """From no method at all to a paper that works, each step with what keeps it back."""
    assert state(toy) == ("planned", "none")
    toy.add("one")
    toy.passed("one")
    assert state(toy) == ("building", "none")
    toy.add("two")
    row = row_of(PAPER, list(toy.cards.values()))
    assert row.status == "building" and row.lacking == ("the laws of two were never run",)
    toy.passed("two")
    row = row_of(PAPER, list(toy.cards.values()))
    assert (row.status, row.lacking, row.methods) == ("works", (), ("one", "two"))
    assert row.as_json() == {
        "id": "P10", "title": "A title", "room": "merge", "methods": ["one", "two"], "status": "works", "claim": "none",
    }  # fmt: skip


def test_changed_code_is_building_again(toy: Toys) -> None:
    for name in PAPER.methods:
        toy.add(name)
    toy.passed(*PAPER.methods)
    assert state(toy) == ("works", "none")
    toy.change("two")
    row = row_of(PAPER, list(toy.cards.values()))
    assert row.status == "building" and row.lacking == ("two has changed since its laws were run",)
    toy.passed("two")
    assert state(toy) == ("works", "none")


def test_a_broken_law_is_building_and_named(toy: Toys) -> None:
    for name in PAPER.methods:
        toy.add(name)
    toy.passed("one")
    toy.passed("two", outcome="failed")
    row = row_of(PAPER, list(toy.cards.values()))
    assert row.status == "building" and row.lacking == ("two breaks its laws: law_b",)
    results.store_law(toy.card("two"), {"a": "skipped: no torch"})
    assert row_of(PAPER, list(toy.cards.values())).lacking == ("two breaks its laws: no law was passed",)


@pytest.mark.parametrize("verdict", ["holds", "fails"])
def test_works_and_the_claim_are_two_answers(toy: Toys, verdict: str) -> None:
    """A complete system whose paper's effect was not seen works and fails; a stale claim is none."""
    for name in PAPER.methods:
        toy.add(name)
    toy.passed(*PAPER.methods)
    results.store_claim("P10", record(verdict), toy.cards)
    assert state(toy) == ("works", verdict)
    toy.change("two")  # not what the claim is about
    assert state(toy) == ("building", verdict)
    toy.change("one")
    row = row_of(PAPER, list(toy.cards.values()))
    assert (row.status, row.claim, row.stale_claim) == ("building", "none", True)


def test_a_card_elsewhere_is_named_with_its_room_and_counts_not_as_the_method(toy: Toys) -> None:
    toy.add("helper")
    row = row_of(PAPER, list(toy.cards.values()))
    assert (row.status, row.methods) == ("planned", ("helper",))
    row = row_of(Paper("P10", "T", "weights.prune", ("one",), "I.", "W."), list(toy.cards.values()))
    assert row.methods == ("merge/helper",) and row.as_json()["room"] == "weights"
    other = toy.add("one", paper="P11")
    assert row_of(PAPER, [other]).status == "planned"  # it does not cite the paper


def test_rows_of_this_repository() -> None:
    rows = paper_rows()
    assert [r.paper.id for r in rows] == [p.id for p in catalogue()]
    standing = {c.name for c in all_cards()}
    for row in rows:
        assert row.status in papers.STATUSES and row.claim in papers.CLAIMS
        assert (row.status == "planned") == (not standing & set(row.paper.methods)), row.paper.id
        assert (row.status == "works") == (not row.lacking)
