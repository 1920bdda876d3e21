"""A recipe file, read strictly: words, types and ranges are right before any model is looked at."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from pydantic import ValidationError

from nett.core.dtypes import Dtype, dtype_named
from nett.core.errors import UsageError
from nett.merge.recipe_errors import as_usage_error, refuse_later
from nett.merge.recipe_schema import recipe_model
from nett.merge.recipe_values import Scope
from nett.merge.recipe_words import Vocabulary, recipe_card, vocabulary
from nett.merge.recipe_yaml import Document, Place, read_document


@final
@dataclass(frozen=True)
class Source:
    """A model that a recipe names: its reference, where it is named, and its own parameters, if it has any."""

    reference: str
    place: Place
    scope: Scope | None

    @property
    def key(self) -> str:
        """The same for every spelling of one path."""
        return "+".join(os.path.abspath(part) for part in self.reference.split("+"))


@final
@dataclass(frozen=True)
class Recipe:
    """A recipe that is well-formed: words, types and ranges are right. No model was looked at yet."""

    document: Document
    words: Vocabulary
    base: Source | None
    models: tuple[Source, ...]
    dtype: Dtype | None
    out_dtype: Dtype | None
    shared: Scope | None

    def at(self, place: Place) -> str:
        """``recipe.yml:7 merge/ties``."""
        return f"{self.document.at(place)} {self.words.card.key}"

    @property
    def base_is_listed(self) -> bool:
        return self.base is not None and any(m.key == self.base.key for m in self.models)

    @property
    def tuned(self) -> tuple[Source, ...]:
        """The models that the kernel takes beside the base. Methods without a base take base_model as one more
        model, the last one unless it is listed, as mergekit does."""
        if self.base is None:
            return self.models
        if self.words.has_base:
            return tuple(m for m in self.models if m.key != self.base.key)
        return self.models if self.base_is_listed else (*self.models, self.base)


def load_recipe(file: Path) -> Recipe:
    """Read and check a recipe file; UsageError with file, line and method at the first thing that is off."""
    document = read_document(file)
    data = {key: value for key, value in document.data.items() if value is not None}
    name = data.get("merge_method")
    if not isinstance(name, str):
        what = "merge_method is missing" if name is None else f"merge_method = {name!r} is not the name of a method"
        raise UsageError(what, where=document.at(("merge_method",)), hint="Name one: nett list merge")
    card = recipe_card(name, document.at(("merge_method",)))
    words = vocabulary(card)
    refuse_later(document, data, card.key)
    try:
        checked = recipe_model(card.name).model_validate(data)
    except ValidationError as error:
        raise as_usage_error(error, document, words) from None
    plain = checked.model_dump(by_alias=True, exclude_unset=True, warnings=False)

    def scope(part: Mapping[str, Any], place: Place) -> Scope | None:
        return Scope(part["parameters"], (*place, "parameters")) if part.get("parameters") else None

    recipe = Recipe(
        document,
        words,
        Source(plain["base_model"], ("base_model",), None) if plain.get("base_model") else None,
        tuple(
            Source(entry["model"], ("models", i), scope(entry, ("models", i)))
            for i, entry in enumerate(plain["models"])
        ),
        dtype_named(plain["dtype"]) if plain.get("dtype") else None,
        dtype_named(plain["out_dtype"]) if plain.get("out_dtype") else None,
        scope(plain, ()),
    )
    _check_models(recipe)
    return recipe


def _check_models(recipe: Recipe) -> None:
    seen = {recipe.base.key: recipe.base} if recipe.base else {}
    listed: set[str] = set()
    for model in recipe.models:
        first = seen.setdefault(model.key, model)
        line = recipe.document.line(first.place)
        if first.reference != model.reference:
            raise UsageError(
                f"{model.reference!r} is {first.reference!r} of line {line}, spelt in another way",
                where=recipe.at(model.place),
                hint="Spell a model in one way, so that it is plain which is the base.",
            )
        if model.key in listed:
            raise UsageError(f"names {model.reference!r} twice (line {line})", where=recipe.at(model.place))
        listed.add(model.key)
    wanted, found = recipe.words.models, len(recipe.tuned)
    if (wanted is not None and found != wanted) or not found:
        beside = " beside base_model" if recipe.words.has_base else ""
        counted = " (base_model counts as a model)" if recipe.base and not recipe.words.has_base else ""
        raise UsageError(
            f"takes {wanted or 'one or more'} model{'' if wanted == 1 else 's'}{beside}, but {found} "
            f"{'was' if found == 1 else 'were'} given{counted}",
            where=recipe.at(("models",)),
        )
