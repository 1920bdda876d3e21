"""Every method of the room has its place in the survey's taxonomy (P43), and the page and the list say it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nett.core.cards import all_cards, find_card
from nett.core.errors import NettError, UsageError
from nett.experts.list import list as listed
from nett.experts.taxonomy import BESIDE, LEAVES, place_of, placed, registry, taxonomy_page
from support.cli import nett

CARDS = [c for c in all_cards() if c.room == "experts" and not c.hidden]


@pytest.mark.parametrize("name", [c.name for c in CARDS])
def test_every_method_has_a_place(name: str) -> None:
    card = find_card(name, "experts")
    assert place_of(card) or card.sections["Place"].startswith(BESIDE)


def test_what_has_no_place_is_refused() -> None:
    card = find_card("experts/reap")
    bare = {k: v for k, v in card.sections.items() if k != "Place"}
    with pytest.raises(NettError, match="says no place"):
        place_of(replace(card, sections=bare))
    with pytest.raises(NettError, match="Did you mean 'model level, compression, pruning'"):
        place_of(replace(card, sections=bare | {"Place": "model level, compression, prunning"}))
    both = replace(
        card, sections=bare | {"Place": "model level, compression,\n    low rank; model level, compression, pruning."}
    )
    assert [leaf.path[2] for leaf in place_of(both)] == ["low rank", "pruning"]


def test_levels_are_those_of_the_survey() -> None:
    assert [*dict.fromkeys(leaf.path[0] for leaf in LEAVES)] == ["model level", "system level", "hardware level"]
    assert len({leaf.place for leaf in LEAVES}) == len(LEAVES)
    order = [leaf.path[:2] for leaf in LEAVES]
    assert len([*dict.fromkeys(order)]) == sum(
        a != b for a, b in zip(order, [None, *order], strict=False)
    )  # no branch twice


def test_registry_holds_every_method_once_a_place() -> None:
    rows, (found, beside) = registry(CARDS), placed(CARDS)
    assert len(rows) == len(LEAVES) and json.loads(json.dumps(rows)) == rows
    assert {n for r in rows for n in r["methods"]} | {c.name for c in beside} == {c.name for c in CARDS}
    for row, (leaf, mine) in zip(rows, found.items(), strict=True):
        assert row["kind"] == leaf.path[2] and ("elsewhere" in row) == (not mine)
    pruning = next(r for r in rows if r["kind"] == "pruning")
    assert {"reap", "frequency", "random"} <= set(pruning["methods"])


def test_the_page_says_what_is_not_covered() -> None:
    page = taxonomy_page(CARDS, "An introduction.", {"experts/reap": "niche"})
    assert "[reap](reap.md) (niche)" in page and "## Hardware level" in page
    for leaf, mine in placed(CARDS)[0].items():
        assert mine or f"None. {leaf.elsewhere}" in page
    alone = taxonomy_page([find_card("experts/mc_smoe")], "", {})
    assert "Experts, or neurons of experts, that go. | None. Nothing here yet." in alone


def test_the_command(tmp_path: Path) -> None:
    said = nett("experts", "list", "--taxonomy", "--json", str(tmp_path / "t.json")).succeeded().out
    assert said.startswith("model level\n  architecture\n    expert design ") and "mc_smoe (P23)" in said
    assert json.loads((tmp_path / "t.json").read_text())["taxonomy"] == registry(CARDS)
    plain = nett("experts", "list").succeeded().out
    assert len(plain.splitlines()) == len(CARDS)
    with pytest.raises(UsageError, match="takes no asset"):
        listed(["model"])
