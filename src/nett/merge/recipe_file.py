"""A recipe file, read strictly: words, types and ranges are right before any model is looked at."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from pydantic import ValidationError

from nett.core.dtypes import Dtype, dtype_named
from nett.core.errors import UsageError
from nett.core.yaml_file import Document, Place, read_documents
from nett.merge.recipe_chat import check_template
from nett.merge.recipe_checks import check_contents, check_slice, is_kept
from nett.merge.recipe_errors import as_usage_error
from nett.merge.recipe_parts import Part, Slice, Source, parts_of
from nett.merge.recipe_schema import recipe_model
from nett.merge.recipe_tokens import WORDS, TokenizerRule, tokenizer_rule
from nett.merge.recipe_words import Vocabulary, recipe_card, vocabulary
from nett.merge.references import place_of

EXAMPLE = "merge_method: …, models: …"


@final
@dataclass(frozen=True)
class Recipe:
    """A recipe that is well-formed: words, types and ranges are right. No model was looked at yet."""

    document: Document
    words: Vocabulary
    base: Source | None
    parts: tuple[Part, ...]
    dtype: Dtype | None
    out_dtype: Dtype | None
    notes: tuple[str, ...] = ()
    chat_template: str | None = None
    tokenizer: TokenizerRule | None = None
    name: str | None = None  # of a document that others refer to

    def at(self, place: Place) -> str:
        """``recipe.yml:7 merge/ties``."""
        return f"{self.document.at(place)} {self.words.card.key}"

    @property
    def slices(self) -> tuple[Slice, ...]:
        return tuple(s for part in self.parts for s in part.slices)

    @property
    def models(self) -> tuple[Source, ...]:
        """Every model once that is listed to be merged, in the order of the recipe."""
        return _once(s for one in self.slices for s in one.sources)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every model once: those listed, and the bases where they are not."""
        bases = [*(one.base for one in self.slices), self.base]
        return _once([*self.models, *(b for b in bases if b is not None)])

    def places(self, steps: Container[str]) -> dict[str, str]:
        """Where all its references lie, but for those that are ``steps`` of the same file."""
        named = [s.reference for s in self.sources]
        if self.tokenizer is not None:
            models = (rule.model for rule in self.tokenizer.tokens.values())
            named += [m for m in (self.tokenizer.source, *models) if m is not None and m not in WORDS]
        return {one: place_of(one, steps) for one in named if one not in steps}

    @property
    def tuned(self) -> tuple[Source, ...]:
        """Every model once that the kernel takes beside a base."""
        return _once(s for one in self.slices for s in one.tuned)


def _once(sources: Iterable[Source]) -> tuple[Source, ...]:
    """Each model where it is named first."""
    found: dict[str, Source] = {}
    for source in sources:
        found.setdefault(source.key, source)
    return tuple(found.values())


def load_recipe(file: Path, known: Mapping[str, str] | None = None) -> Recipe:
    """Read and check a recipe file of one document; ``known`` as in :func:`check_recipe`."""
    documents = read_documents(file, EXAMPLE)
    if len(documents) > 1:
        raise UsageError(f"holds {len(documents)} documents, where one is expected", where=file)
    return check_recipe(documents[0], known)


def check_recipe(document: Document, known: Mapping[str, str] | None = None) -> Recipe:
    """Check one document that is a recipe; UsageError with file, line and method at the first thing that is off.

    ``known``: where its references lay when it was run before (a receipt's ``references``).
    """
    kept = [key for key in document.data if is_kept(key, document.holders)]
    data = {key: value for key, value in document.data.items() if value is not None and key not in kept}
    name = data.get("merge_method")
    if not isinstance(name, str):
        what = "merge_method is missing" if name is None else f"merge_method = {name!r} is not the name of a method"
        raise UsageError(what, where=document.at(("merge_method",)), hint="Name one: nett list merge")
    card = recipe_card(name, document.at(("merge_method",)))
    words = vocabulary(card)
    check_contents(document, data, card.key)
    try:
        checked = recipe_model(card.name).model_validate(data, context=known)
    except ValidationError as error:
        raise as_usage_error(error, document, words) from None
    plain = checked.model_dump(by_alias=True, exclude_unset=True, exclude_none=True, warnings=False)
    base = Source(plain["base_model"], ("base_model",), None) if plain.get("base_model") else None
    recipe = Recipe(
        document,
        words,
        base,
        parts_of(plain, base, words.has_base),
        dtype_named(plain["dtype"]) if plain.get("dtype") else None,
        dtype_named(plain["out_dtype"]) if plain.get("out_dtype") else None,
        tuple(_without_effect(document, plain, [key for key in kept if key not in document.holders])),
        plain.get("chat_template"),
        tokenizer_rule(plain, document, card.key),
        plain.get("name"),
    )
    check_template(recipe)
    for one in recipe.slices:
        check_slice(recipe, one)
    return recipe


def _without_effect(document: Document, plain: Mapping[str, Any], unused: Sequence[str]) -> Iterator[str]:
    """What mergekit takes and does nothing with."""
    for key in unused:
        yield f"{key} (line {document.line((key,))}) has no effect: no alias stands for any of it"
    inside = [(("modules", n), m) for n, m in plain.get("modules", {}).items()]
    for place, content in [((), plain), *inside]:
        for i, entry in enumerate(content.get("slices", [])):
            if "residual_weight" in entry:
                line = document.line((*place, "slices", i, "residual_weight"))
                yield f"residual_weight (line {line}) has no effect, as in mergekit"
