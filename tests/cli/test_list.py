"""``nett list``: the schema of the issue, to the letter, and the table."""

from __future__ import annotations

import json

import jsonschema
import pytest

from nett.core.cards import all_cards
from nett.core.registry import ROOMS
from support.cli import nett

SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["room", "name", "papers", "kind", "guarantee", "grain", "standing", "summary", "parameters"],
        "properties": {
            "room": {"enum": list(ROOMS)},
            "name": {"type": "string", "pattern": "^[a-z][a-z0-9_]*$"},
            "papers": {"type": "array", "items": {"type": "string", "pattern": "^P[0-9]{2}$"}},
            "kind": {"enum": ["reduce", "train", "serve", "measure", "make"]},
            "guarantee": {"enum": ["exact", "bounded", "measured"]},
            "grain": {"enum": ["tensor", "block", "model", "stream", "corpus"]},
            "standing": {"enum": ["recommended", "niche", "dominated", "unproven"]},
            "summary": {"type": "string", "minLength": 20},
            "parameters": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name", "type", "default", "description"],
                    "properties": {
                        "name": {"type": "string"},
                        "type": {"type": "string"},
                        "default": {},
                        "description": {"type": "string", "minLength": 5},
                    },
                },
            },
        },
    },
}


def rows(*words: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(nett("list", *words, "--json").succeeded().out)
    return found


def test_json_is_as_promised() -> None:
    found = rows()
    jsonschema.validate(found, SCHEMA)
    assert [(r["room"], r["name"]) for r in found] == [(c.room, c.name) for c in all_cards() if not c.hidden]
    names = {r["name"] for r in found if r["room"] == "merge"}
    first = "linear slerp task_arithmetic dare_linear dare_ties passthrough ties tall_masks consensus"
    assert set(first.split()) <= names
    ties = next(r for r in found if r["name"] == "ties")
    assert ties["papers"] == ["P10"] and ties["kind"] == "reduce" and ties["guarantee"] == "measured"
    density = next(p for p in ties["parameters"] if p["name"] == "density")  # type: ignore[attr-defined]
    assert density["default"] == 0.2 and density["type"] == "float"
    assert next(r for r in found if r["name"] == "tall_masks")["papers"] == ["P04"]


def test_one_room() -> None:
    assert rows("merge") == [r for r in rows() if r["room"] == "merge"]


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_name_even_if_it_is_empty(room: str) -> None:
    said = nett("list", room).succeeded().out
    methods = [c for c in all_cards() if c.room == room and not c.hidden]
    assert all(c.name in said for c in methods)
    assert methods or said == f"The room {room} has no methods yet.\n"
    assert rows(room) == [r for r in rows() if r["room"] == room]


def test_unknown_room() -> None:
    nett("list", "marge").failed(2, "'marge'", "Did you mean 'merge'")


def test_table_names_every_method() -> None:
    said = nett("list").succeeded().out
    for card in all_cards():
        if not card.hidden:
            line = next(row for row in said.splitlines() if row.split()[:1] == [card.name])
            assert card.guarantee in line and all(p in line for p in card.papers)


def test_show_as_json_is_the_whole_card() -> None:
    card = next(c for c in all_cards() if c.name == "ties")
    assert json.loads(nett("show", "ties", "--json").succeeded().out) == json.loads(json.dumps(card.as_json()))
