"""What a recipe's settings come to for each tensor: scopes, filters and gradients, in mergekit's order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from nett.core.errors import UsageError, did_you_mean
from nett.core.layers import layer_of
from nett.core.yaml_file import Document, Place
from nett.merge.recipe_words import Vocabulary, Word, written

Settings = Mapping[str, Any]  # parameter -> value, gradient, condition(s); conditions are {"filter", "value"}


@final
@dataclass(frozen=True)
class Scope:
    """One ``parameters:`` block and its place in the file."""

    settings: Settings
    place: Place


@final
@dataclass(frozen=True)
class Value:
    """A parameter's value for one tensor, in the recipe's terms, and where it comes from."""

    value: Any
    source: str


@final
@dataclass(frozen=True)
class Asked:
    """One tensor of the output, and what its values depend on: the names under which its models hold it, in the
    order of ``models`` (name for messages, place in the file, own parameters), and the scopes around them all."""

    tensor: str
    t: float
    names: tuple[str, ...]
    models: tuple[tuple[str, Place, Scope | None], ...]
    scopes: tuple[Scope, ...]  # from the nearest to the recipe's own
    place: Place = ("parameters",)


@final
@dataclass(frozen=True)
class Row:
    """All values for one tensor: those for all models, and those of each tuned model in order."""

    t: float
    shared: Mapping[str, Value]
    each: tuple[Mapping[str, Value], ...]
    models: tuple[str, ...]


def depth_of(names: Sequence[str]) -> dict[str, float]:
    """t of each tensor: the layer's number / (layers of its stack - 1), 1 if there is one layer, 0 outside layers."""
    layers: dict[str, int] = {}
    for name in names:
        if found := layer_of(name):
            layers[found.stack] = max(layers.get(found.stack, 0), found.number + 1)
    depths = {}
    for name in names:
        found = layer_of(name)
        last = layers[found.stack] - 1 if found else 0
        depths[name] = 0.0 if found is None else found.number / last if last else 1.0
    return depths


def _conditions(setting: Any) -> list[Mapping[str, Any]]:
    """The conditions of a setting in order; none for plain values and gradients."""
    if isinstance(setting, Mapping):
        return [setting]
    return list(setting) if isinstance(setting, list) and setting and isinstance(setting[0], Mapping) else []


def _plain(setting: Any, t: float) -> Any:
    """A value, or a gradient at t: numbers are interpolated, anything else is a choice. None for an empty list."""
    if not isinstance(setting, list):
        return setting
    if not setting:
        return None
    at = t * (len(setting) - 1)
    low = int(at)
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in setting):
        return setting[low]
    share = at - low
    return (1 - share) * setting[low] + share * setting[min(len(setting) - 1, low + 1)]


@final
class Resolver:
    """Values by tensor, of all the tensors that are ``asked`` for."""

    def __init__(self, document: Document, words: Vocabulary, asked: Sequence[Asked]) -> None:
        self.document, self.words, self._total = document, words, len(asked)
        self._asked = {one.tensor: one for one in asked}
        self.matches = self._count_matches(asked)

    def _filters(self, scope: Scope) -> Iterator[tuple[str, str, Place]]:
        """(parameter, filter, place) of the conditions of one scope."""
        for name, setting in scope.settings.items():
            for i, condition in enumerate(_conditions(setting)):
                wanted = condition.get("filter")
                if name in self.words.words and wanted is not None and wanted != "*":
                    place = (*scope.place, name)
                    yield name, wanted, (*place, i) if isinstance(setting, list) else place

    def _reach(self, asked: Sequence[Asked]) -> tuple[dict[Place, Scope], dict[Place, list[tuple[str, ...]]]]:
        """Every scope by its place, and the tensors that it holds for: the output's name first, then the names under
        which the models that it speaks of hold it."""
        scopes: dict[Place, Scope] = {}
        reached: dict[Place, list[tuple[str, ...]]] = {}
        for one in asked:
            for scope in one.scopes:
                scopes[scope.place] = scope
                reached.setdefault(scope.place, []).append((one.tensor, *one.names))
            for name, (_, _, own) in zip(one.names, one.models, strict=True):
                if own is not None:
                    scopes[own.place] = own
                    reached.setdefault(own.place, []).append((one.tensor, name))
        return scopes, reached

    def _count_matches(self, asked: Sequence[Asked]) -> list[tuple[str, Place, int]]:
        """(filter, place, tensors that it matches) of every filter; one that matches none is an error."""
        found = []
        self._scopes, reached = self._reach(asked)
        for at, scope in self._scopes.items():
            for parameter, wanted, place in self._filters(scope):
                # What is set for a model is asked under that model's name for the tensor, as in mergekit.
                first, last = (1, None) if self.words.words[parameter].each else (0, 1)
                seen = [names[first:last] for names in reached[at]]
                count = sum(any(wanted in name for name in names) for names in seen)
                if not count:
                    every = list(dict.fromkeys(name for names in seen for name in names))
                    raise UsageError(
                        f"the filter {wanted!r} matches no tensor.{_nearest_part(wanted, every)}",
                        where=f"{self.document.at((*place, 'filter'))} {self.words.card.key}",
                        hint="A filter is a part of the tensor's name, as it stands; * and ? have no meaning in it.",
                    )
                found.append((wanted, place, count))
        return found

    def row(self, tensor: str) -> Row:
        """Every parameter's value for one tensor. UsageError where a required one has none."""
        one = self._asked[tensor]
        shared = {w.name: self._value(w, tensor, one.t, one.scopes, None, one.place) for w in self.words.shared}
        each = tuple(
            {
                w.name: self._value(w, name, one.t, [*([own] if own else []), *one.scopes], model, place)
                for w in self.words.each
            }
            for name, (model, place, own) in zip(one.names, one.models, strict=True)
        )
        return Row(one.t, shared, each, tuple(model for model, _, _ in one.models))

    def _value(
        self, word: Word, tensor: str, t: float, scopes: Sequence[Scope], model: str | None, place: Place
    ) -> Value:
        for scope in scopes:
            if word.name in scope.settings:
                found = self._evaluate(word, scope, tensor, t)
                if found is not None:
                    return found
        if not word.shown.required:
            return Value(word.shown.default, "default")
        where = next((s.place for s in scopes if word.name in s.settings), None)
        owner = f" of {model}" if model else ""
        said = "none of its settings matches" if where else "must be given"
        raise UsageError(
            f"the parameter {word.name!r}{owner} has no value for the tensor {tensor!r}: {said}",
            where=f"{self.document.at((*where, word.name) if where else place)} {self.words.card.key}",
            hint=f"Add '{word.name}: NUMBER' to the parameters{owner}"
            + (", or a last entry without a filter." if where else "."),
        )

    def _evaluate(self, word: Word, scope: Scope, tensor: str, t: float) -> Value | None:
        setting = scope.settings[word.name]
        place: Place = (*scope.place, word.name)
        conditions = _conditions(setting)
        if conditions:
            for i, condition in enumerate(conditions):
                wanted = condition.get("filter")
                if wanted is None or wanted == "*" or wanted in tensor:
                    place = (*place, i) if isinstance(setting, list) else place
                    setting = condition["value"]
                    break
            else:
                return None
        value = _plain(setting, t)
        if value is None:
            return None
        source = f"line {self.document.line(place)}"
        if isinstance(setting, list):
            value, source = word.check(value), f"{source}, t = {t:.4g}"
        return Value(value, source)

    def parameters(self, row: Row) -> dict[str, Any]:
        """The kernel's keyword arguments for one tensor."""
        made = dict(self.words.fixed)
        for word in self.words.shared:
            made[word.kernel] = word.for_kernel(row.shared[word.name].value)
        for word in self.words.each:
            values = [word.for_kernel(found[word.name].value) for found in row.each]
            takes_many = (parameter := self.words.card.parameter(word.kernel)) is not None and parameter.many
            made[word.kernel] = values if takes_many else values[0]
        return made

    def notes(self) -> list[str]:
        """What a reader of the plan should know: how many tensors each filter matches, and what has no effect."""
        said = [
            f"filter {wanted!r} (line {self.document.line((*place, 'filter'))}) matches {count} of {self._total} tensors"
            for wanted, place, count in self.matches
        ]
        for scope in self._scopes.values():
            for name, setting in scope.settings.items():
                if name in self.words.ignored:
                    line = self.document.line((*scope.place, name))
                    shown = written(setting) if not isinstance(setting, list | Mapping) else "…"
                    said.append(f"{name}: {shown} (line {line}) has no effect on {self.words.card.name}")
        return said


def _nearest_part(wanted: str, names: Sequence[str]) -> str:
    """The parts of tensor names of as many words as the filter, nearest to it."""
    words = wanted.strip(".").count(".") + 1
    parts = set()
    for name in names:
        split = re.split(r"\.", name)
        parts |= {".".join(split[i : i + words]) for i in range(len(split) - words + 1)}
    near = did_you_mean(wanted.strip("."), parts)
    return near if "Did" in near else f" Tensors are called, for example, {names[0]!r}." if names else ""
