"""The words of a method's recipes: its parameters as mergekit names them, made from the card alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from nett.core.cards import all_cards
from nett.core.errors import UsageError, did_you_mean
from nett.core.registry import Card, Parameter


@final
@dataclass(frozen=True)
class Word:
    """One parameter: ``shown`` as recipes have it, ``kernel`` its name in the method's signature."""

    shown: Parameter
    kernel: str
    each: bool  # one value for each model, not one for all
    values: Mapping[str, Any]  # from the recipe's value to the kernel's, where they differ

    @property
    def name(self) -> str:
        return self.shown.name

    @property
    def about(self) -> str:
        """Range and default, for messages."""
        default = "required" if self.shown.required else f"default {written(self.shown.default)}"
        return f"{self.shown.range}, {default}" if self.shown.range else default

    def check(self, value: Any) -> Any:
        """One plain value, as the recipe's parameter takes it; UsageError with the range otherwise."""
        checked = self.shown.check(value, "")
        if isinstance(checked, float) and not math.isfinite(checked):
            raise UsageError(f"{self.name} = {value!r} is not a finite number")
        return checked

    def for_kernel(self, value: Any) -> Any:
        return self.values[written(value)] if self.values else value


@final
@dataclass(frozen=True)
class Vocabulary:
    """What recipes of one method may say, read from the card's ``mergekit`` mapping.

    Its keys: ``rename`` recipe name -> parameter; ``required`` names; ``defaults`` in the recipe's terms; ``fixed``
    parameters of the kernel that give it mergekit's meaning; ``values`` recipe value -> kernel value; ``ignored``
    names that mergekit takes and that change nothing; ``only`` names that may have this one value; ``per_model``
    parameters that recipes set for each model although the kernel takes one number; ``models`` how many there are.
    """

    card: Card
    words: Mapping[str, Word]
    ignored: tuple[str, ...]
    only: Mapping[str, Any]
    fixed: Mapping[str, Any]
    models: int | None

    @property
    def shared(self) -> list[Word]:
        return [w for w in self.words.values() if not w.each]

    @property
    def each(self) -> list[Word]:
        return [w for w in self.words.values() if w.each]

    @property
    def has_base(self) -> bool:
        """Whether the base is an operand of its own, and not one model among the others."""
        return "base" in self.card.operands


def written(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def recipe_cards() -> dict[str, Card]:
    """The methods that recipes can name: those whose card says how mergekit speaks of them."""
    return {c.name: c for c in all_cards() if c.room == "merge" and c.mergekit}


def recipe_card(name: str, where: str) -> Card:
    """The card of a ``merge_method`` (``-`` or ``_``); UsageError with what exists."""
    cards = recipe_cards()
    found = cards.get(name.replace("-", "_"))
    if found is not None:
        return found
    ours = any(c.room == "merge" and c.name == name.replace("-", "_") for c in all_cards())
    known = f"Recipes can name: {', '.join(sorted(cards))}."
    if ours:
        what = f"merge_method {name!r} is a method of nett that mergekit does not have, so recipes cannot name it."
        raise UsageError(what, where=where, hint=f"Run it with: nett merge {name} --help. {known}")
    near = did_you_mean(name.replace("-", "_"), cards)
    raise UsageError(
        f"merge_method {name!r} is not a method that nett has.{near if 'Did' in near else ''}", where=where, hint=known
    )


def vocabulary(card: Card) -> Vocabulary:
    """The words of a method's recipes."""
    said = card.mergekit
    names = {kernel: recipe for recipe, kernel in said.get("rename", {}).items()}
    words = {}
    for parameter in card.parameters:
        if parameter.name in said.get("fixed", {}):
            continue
        name = names.get(parameter.name, parameter.name)
        values = said.get("values", {}).get(name, {})
        shown = replace(
            parameter,
            name=name,
            many=False,
            optional=False,
            grid=(),
            required=name in said.get("required", ()),
            default=said.get("defaults", {}).get(name, parameter.default),
        )
        if values:
            truth = set(values) == {"true", "false"}
            shown = replace(shown, type="bool" if truth else "choice", choices=() if truth else tuple(values))
        each = parameter.many or name in said.get("per_model", ())
        words[name] = Word(shown, parameter.name, each, values)
    return Vocabulary(
        card,
        words,
        tuple(said.get("ignored", ())),
        said.get("only", {}),
        said.get("fixed", {}),
        said.get("models"),
    )
