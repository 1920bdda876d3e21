"""What is wrong with a recipe, said with the file, the line, the method, and what would be accepted."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from nett.core.errors import UsageError, did_you_mean
from nett.core.yaml_file import Document, Place
from nett.merge.recipe_checks import TOP
from nett.merge.recipe_schema import DTYPES, OWN
from nett.merge.recipe_tokens import RecipeToken, RecipeTokenizer
from nett.merge.recipe_words import Vocabulary, written

_INSIDE = {  # the keys of what stands in a list or mapping of this name
    "models": ("model", "parameters"),
    "sources": ("model", "layer_range", "parameters"),
    "slices": ("sources", "base_model", "parameters"),
    "modules": ("models", "slices", "parameters"),
}


def as_usage_error(error: ValidationError, document: Document, words: Vocabulary) -> UsageError:
    """The first of pydantic's findings, by line, as an error for people; what is missing may be what is misspelt."""
    findings = [(_place(tuple(e["loc"])), e) for e in error.errors()]
    place, first = min(findings, key=lambda f: (f[1]["type"] == "missing", document.line(f[0])))
    what, hint = _said(place, first, words)
    more = len({document.line(p) for p, _ in findings}) - 1
    if more:
        what += f" (and {more} more line{'s' if more > 1 else ''} with errors)"
    return UsageError(what, where=f"{document.at(place)} {words.card.key}", hint=hint)


def _place(loc: Place) -> Place:
    """pydantic's path without the tags of its unions."""
    return tuple(part for part in loc if not (isinstance(part, str) and part.startswith(":")))


def _said(place: Place, error: Mapping[str, Any], words: Vocabulary) -> tuple[str, str | None]:
    kind, value, name = error["type"], error["input"], str(place[-1]) if place else "the recipe"
    if kind == OWN:
        return error["ctx"]["what"], None
    in_parameters = len(place) >= 2 and place[-2] == "parameters"
    if kind == "extra_forbidden":
        return _unknown_parameter(name, place, words) if in_parameters else _unknown_key(name, place)
    if kind == "missing":
        if name == "base_model":
            return "base_model is missing", f"{words.card.title} needs the model that the others were tuned from."
        return f"{name!r} is missing", None
    if kind == "literal_error" and in_parameters:
        only = written(words.only[name])
        return f"{name} = {written(value)} is not supported here, only {name}: {only}", None
    if kind == "literal_error":
        near = did_you_mean(str(value), DTYPES)
        return f"{name} = {value!r} is not one of {', '.join(DTYPES)}.{near if 'Did' in near else ''}", None
    if name == "filter":
        return f"filter = {value!r} is not a text", "A filter is a part of a tensor's name; put it in quotes."
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        expected = "a mapping of parameters to values" if name == "parameters" else "a mapping of keys to values"
        return f"{_shown(place)} = {value!r} is not {expected}", None
    if name == "layer_range" or place[-2:-1] == ("layer_range",):
        shown = f"{_shown(place)} = {value!r}"
        return f"{shown} is not a range of layers", "Write two whole numbers: layer_range: [FROM, TO], TO not included."
    if kind == "too_short":
        return f"{name!r} is empty", None
    return f"{_shown(place)} = {value!r}: {error['msg'][:1].lower()}{error['msg'][1:]}", None


def _shown(place: Place) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _unknown_key(name: str, place: Place) -> tuple[str, str | None]:
    around = [part for part in place[:-1] if isinstance(part, str)]
    if around[:1] == ["tokenizer"]:
        known = tuple((RecipeTokenizer if len(place) == 2 else RecipeToken).model_fields)
    else:
        known = TOP if not around else ("filter", "value") if "parameters" in around else _INSIDE[_list_of(place)]
    near = did_you_mean(name, known)
    return f"unknown key {name!r}.{near}", f"Known here: {', '.join(known)}." if "Did" in near else None


def _list_of(place: Place) -> str:
    """The list or mapping whose entry has the key at ``place``."""
    return "modules" if len(place) == 3 and place[0] == "modules" else str(place[-3])


def _of_one_model(place: Place) -> bool:
    """Whether this parameter stands with one model, and not with a slice, a module or the recipe."""
    return str(place[-4]) in ("models", "sources") if len(place) >= 4 else False


def _unknown_parameter(name: str, place: Place, words: Vocabulary) -> tuple[str, str]:
    see = f"See: nett show {words.card.key}"
    own = _of_one_model(place)
    if own and name in words.words:
        return (
            f"{name!r} is one value for the whole merge, so it cannot be set for one model",
            "Move it to the 'parameters' of the slice, or of the recipe beside merge_method."
            if "sources" in place
            else "Move it to the recipe's own 'parameters', beside merge_method.",
        )
    renamed = next((w for w in words.words.values() if w.kernel == name), None)
    if renamed is not None:
        return f"unknown parameter {name!r}. Recipes call it {renamed.name!r} ({renamed.about}).", see
    known = [w.name for w in (words.each if own else words.words.values())]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"unknown parameter {name!r}. Did you mean {near[0]!r} ({words.words[near[0]].about})?", see
    return f"unknown parameter {name!r}. Known here: {', '.join(known) or 'none'}.", see
