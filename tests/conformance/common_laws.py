"""Laws of every card, whatever its kind and room: its parameters, its pages, its place in the catalogue."""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nett
from nett.core.cards import PACKAGE, find_card
from nett.core.errors import UsageError
from nett.core.registry import ROOMS, Card, Parameter

ROOT = Path(nett.__file__).resolve().parents[2]


def card_round_trips_through_json(card: Card, folder: Path) -> None:
    assert Card.from_json(json.loads(json.dumps(card.as_json()))) == card


def name_law(card: Card, folder: Path) -> None:
    """File, function, module and CLI word agree, and the signature is what the card says."""
    assert card.room in ROOMS
    assert card.module == f"nett.{card.room}.{card.name}" or card.module.endswith(f".{card.name}")
    assert (PACKAGE.parent / Path(*card.module.split("."))).with_suffix(".py").is_file()
    for spelling in (card.key, card.key.replace("_", "-")):
        assert find_card(spelling) == card
    signature = inspect.signature(card.load())
    keyword_only = [p for p in signature.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert [p.name for p in keyword_only] == [p.name for p in card.parameters]
    for ours, theirs in zip(card.parameters, keyword_only, strict=True):
        assert ours.required == (theirs.default is inspect.Parameter.empty)
        assert ours.required or ours.default == theirs.default


def said_in_words(card: Card, folder: Path) -> None:
    """A summary in one sentence, a description for every parameter, and when to use the method and when not."""
    assert card.title and card.summary.endswith(".")
    for parameter in card.parameters:
        assert parameter.description, f"{parameter.name} is not described"
    if not card.command:
        for section in ("When to use", "When not", "Source"):
            assert card.sections.get(section), f"the docstring lacks '{section}:'"


def defaults_pass_their_own_check(card: Card, folder: Path) -> None:
    given = {p.name: p.default for p in card.parameters if not p.required}
    required = {p.name: good_value(p) for p in card.parameters if p.required}
    resolved = card.resolve(given | required)
    assert {k: resolved[k] for k in given} == given
    assert card.resolve(required) == resolved
    assert card.resolve({k.replace("_", "-"): v for k, v in (given | required).items()}) == resolved
    for value in given.values():
        assert not isinstance(value, float) or value == value


def values_from_text_are_the_values(card: Card, folder: Path) -> None:
    """What stands on a command line becomes what stands in a recipe or a call."""
    for parameter in card.parameters:
        if parameter.default is None or parameter.required:
            continue
        assert parameter.check(str(parameter.default), card.key) == parameter.default
        if parameter.many:
            two = [parameter.default, parameter.default]
            assert parameter.check(",".join(map(str, two)), card.key) == two == parameter.check(two, card.key)


def bad_values_are_refused(card: Card, folder: Path) -> None:
    """Each with the parameter's name and what it would take."""
    required = {p.name: good_value(p) for p in card.parameters if p.required}
    for parameter in card.parameters:
        for bad in bad_values(parameter):
            with pytest.raises(UsageError) as caught:
                card.resolve(required | {parameter.name: bad})
            assert parameter.name in str(caught.value), (bad, str(caught.value))
            accepted = parameter.choices or (parameter.range,)
            assert all(part in str(caught.value) for part in accepted), (bad, str(caught.value))
            assert card.key in str(caught.value)


def unknown_parameters_are_refused(card: Card, folder: Path) -> None:
    with pytest.raises(UsageError, match="no_such_thing"):
        card.resolve({"no_such_thing": 1})
    for parameter in card.parameters:
        if len(parameter.name) > 3:
            typo = parameter.name[:-2] + parameter.name[-1]
            with pytest.raises(UsageError, match=f"Did you mean '{parameter.name}'"):
                card.resolve({typo: parameter.default})


def docs_page_exists(card: Card, folder: Path) -> None:
    page = ROOT / "docs" / "methods" / card.room / f"{card.name}.md"
    if not (ROOT / "docs").is_dir():
        pytest.skip("no checkout: the docs are not beside the package")
    assert page.is_file(), "run: make docs"
    text = page.read_text(encoding="utf-8")
    assert card.title in text
    for parameter in card.parameters:
        assert parameter.name.replace("_", "-") in text or parameter.name in text


def papers_exist(card: Card, folder: Path) -> None:
    catalogue = tomllib.loads((PACKAGE / "core" / "papers.toml").read_text(encoding="utf-8"))
    known = set(ids_in(catalogue))
    assert len(known) == 81
    assert set(card.papers) <= known
    assert len(set(card.papers)) == len(card.papers)


def ids_in(node: Any) -> Iterator[str]:
    """Paper ids (``P01`` …) wherever the catalogue keeps them."""
    if isinstance(node, dict):
        for key, value in node.items():
            if len(key) == 3 and key[0] == "P" and key[1:].isdigit():
                yield key
            elif key == "id":
                yield str(value)
            yield from ids_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from ids_in(value)


def good_value(parameter: Parameter) -> Any:
    """Some value that the parameter must accept."""
    if parameter.choices:
        return parameter.choices[0]
    if parameter.type in ("int", "float"):
        low = 0 if parameter.low is None else parameter.low
        return low + 1 if parameter.high is None else (low + parameter.high) / 2
    return False if parameter.type == "bool" else "text"


def bad_values(parameter: Parameter) -> Iterator[Any]:
    """Values that the parameter must refuse."""
    if parameter.choices:
        yield from ("no-such-choice", parameter.choices[0] + "x", 17)
    elif parameter.type == "bool":
        yield from ("maybe", 2, "")
    elif parameter.type in ("int", "float"):
        yield from ("much", "", float("nan"), "nan", float("inf"), "-inf", True, [[1.0]], {})
        if parameter.type == "int":
            yield from (1.5, "2.5")
        if parameter.low is not None:
            yield from (
                parameter.low - 1,
                str(parameter.low - 1e-9) if parameter.type == "float" else parameter.low - 2,
            )
            if parameter.open_low:
                yield parameter.low
        if parameter.high is not None:
            yield from (parameter.high + 1, parameter.high + 1e-9)
            if parameter.open_high:
                yield parameter.high
        if not parameter.many:
            yield [1.0, 1.0]
        elif parameter.low is not None:
            yield from ([good_value(parameter), parameter.low - 1], f"{good_value(parameter)},{parameter.low - 1}")
        if not parameter.grid:
            yield "auto"


LAWS = [
    card_round_trips_through_json,
    name_law,
    said_in_words,
    defaults_pass_their_own_check,
    values_from_text_are_the_values,
    bad_values_are_refused,
    unknown_parameters_are_refused,
    docs_page_exists,
    papers_exist,
]
