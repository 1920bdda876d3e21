"""The frozen record."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nett
from nett.core.edge import SCHEMA, Edge, ranked

EDGE = Edge("duplicate_tensor", "m::a", ("m::b",), "store/dedup", 100, 0.5, 0.0, "exact", "nett store dedup m")
KEYS = ["kind", "target", "sources", "method", "bytes_freed", "seconds", "error", "guarantee", "command"]


def test_keys_are_those_of_the_issue() -> None:
    assert list(EDGE.as_json()) == KEYS == SCHEMA["required"] == list(SCHEMA["properties"])
    assert json.loads(json.dumps(EDGE.as_json())) == EDGE.as_json()
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(EDGE.as_json(), SCHEMA)
    bare = Edge("x", "t", (), None, 0, None, None, "measured")
    jsonschema.validate(bare.as_json(), SCHEMA)


@pytest.mark.parametrize(
    "change",
    [{"bytes_freed": -1}, {"bytes_freed": 1.5}, {"guarantee": "sure"}, {"sources": "m"}, {"error": -0.1}, {"extra": 1}, {"target": None}, {"command": 3}],
    ids=str,
)  # fmt: skip
def test_schema_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(EDGE.as_json() | change, SCHEMA)


@pytest.mark.parametrize("key", KEYS)
def test_schema_wants_every_key(key: str) -> None:
    record = EDGE.as_json()
    del record[key]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, SCHEMA)


def test_published_schema_is_the_one() -> None:
    file = Path(nett.__file__).parents[2] / "docs" / "edge.schema.json"
    if not file.parent.is_dir():
        pytest.skip("no checkout: the docs are not beside the package")
    assert json.loads(file.read_text()) == json.loads(json.dumps(SCHEMA))


_edges = st.builds(
    Edge,
    kind=st.sampled_from("ab"),
    target=st.text("xyz", max_size=3),
    sources=st.just(()),
    method=st.none(),
    bytes_freed=st.integers(0, 3),
    seconds=st.none(),
    error=st.none(),
    guarantee=st.sampled_from(["exact", "bounded", "measured"]),
)


@given(st.lists(_edges, max_size=9), st.randoms())
def test_ranking(edges: list[Edge], chance: Any) -> None:
    """Largest first, then the stronger guarantee; the order of the input does not show."""
    found = ranked(edges)
    chance.shuffle(edges)
    assert ranked(edges) == found
    strength = ["exact", "bounded", "measured"]
    for a, b in itertools.pairwise(found):
        assert (-a.bytes_freed, strength.index(a.guarantee)) <= (-b.bytes_freed, strength.index(b.guarantee))
