"""What a recipe's shape cannot tell by itself: that it has one kind of contents, and fitting numbers of models."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from nett.core.errors import UsageError, did_you_mean
from nett.core.yaml_file import Document, Place

if TYPE_CHECKING:
    from nett.merge.recipe_file import Recipe
    from nett.merge.recipe_parts import Slice, Source

TOP = (
    "name", "merge_method", "models", "slices", "modules", "base_model", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template", "parameters",
)  # fmt: skip
CONTENTS = ("models", "slices", "modules")


def is_kept(key: str, holders: Collection[str]) -> bool:
    """Whether a key at the top is only there to keep what aliases stand for, which mergekit takes under any name: one
    that begins with ``x-``, or that holds what stands elsewhere and is no known key misspelt."""
    near = difflib.get_close_matches(key, TOP, n=1, cutoff=0.8)
    return key.startswith("x-") or (key in holders and not near)


def check_contents(document: Document, data: Mapping[str, Any], key: str) -> None:
    """Exactly one of models, slices and modules at the top; exactly one of models and slices in a module."""
    _exactly_one(document, data, (), CONTENTS, key)
    modules = data.get("modules")
    for name, content in modules.items() if isinstance(modules, dict) else ():
        if isinstance(content, dict):
            _exactly_one(document, content, ("modules", name), CONTENTS[:2], key)


def _exactly_one(document: Document, data: Mapping[str, Any], place: Place, kinds: tuple[str, ...], key: str) -> None:
    found = sorted((k for k in kinds if data.get(k) is not None), key=lambda k: document.line((*place, k)))
    if len(found) > 1:
        raise UsageError(
            f"both {found[0]!r} (line {document.line((*place, found[0]))}) and {found[1]!r} say what is merged",
            where=f"{document.at((*place, found[1]))} {key}",
            hint="Keep one: 'models' merges whole models, 'slices' stacks layers, 'modules' does either for each part.",
        )
    known = {"merge_method", "base_model", "dtype", "out_dtype", "parameters", "name", "tokenizer", "tokenizer_source"}
    strange = [k for k in data if k not in known and "Did" in did_you_mean(k, kinds)]
    if not found and not strange:  # what is misspelt is told as an unknown key
        inside = f"the module {place[-1]!r}: " if place else ""
        raise UsageError(
            f"{inside}{kinds[0]!r} is missing (or {' or '.join(repr(k) for k in kinds[1:])})",
            where=f"{document.at(place)} {key}",
        )


def check_slice(recipe: Recipe, one: Slice) -> None:
    """One spelling a model, none twice, the base among a slice's sources, as many models as the method takes."""
    _check_spellings(recipe, one)
    cut = one.sources[0].layers is not None
    if cut:
        _check_lengths(recipe, one)
        if one.base is not None and all(s.key != one.base.key for s in one.sources):
            raise UsageError(
                f"the slice does not list the base model {one.base.reference!r} among its sources",
                where=recipe.at(one.place),
                hint="Add it to 'sources' with the layer_range that the others are compared with.",
            )
    wanted, found = recipe.words.models, len(one.tuned)
    if (wanted is not None and found != wanted) or not found:
        beside = " beside base_model" if recipe.words.has_base else ""
        counted = " (base_model counts as a model)" if recipe.base and not recipe.words.has_base and not cut else ""
        raise UsageError(
            f"takes {wanted or 'one or more'} model{'' if wanted == 1 else 's'}{beside}, but {found} "
            f"{'was' if found == 1 else 'were'} given{counted}",
            where=recipe.at(one.place),
        )


def _check_spellings(recipe: Recipe, one: Slice) -> None:
    seen: dict[str, Source] = {}
    if recipe.base is not None:
        seen[recipe.base.key] = recipe.base
    if one.base is not None and one.base not in one.sources:
        seen.setdefault(one.base.key, one.base)
    listed: set[str] = set()
    for model in one.sources:
        first = seen.setdefault(model.key, model)
        line = recipe.document.line(first.place)
        if first.reference != model.reference:
            raise UsageError(
                f"{model.reference!r} is {first.reference!r} of line {line}, spelt in another way",
                where=recipe.at(model.place),
                hint="Spell a model in one way, so that it is plain which is the base.",
            )
        if model.key in listed:
            raise UsageError(
                f"names {model.reference!r} twice (line {line})",
                where=recipe.at(model.place),
                hint="A model is merged with others, not with itself; layers that stand twice take two slices."
                if model.layers
                else None,
            )
        listed.add(model.key)


def _check_lengths(recipe: Recipe, one: Slice) -> None:
    """Ranges that count upwards, all of one length."""
    first = one.sources[0]
    for source in one.sources:
        low, high = source.layers or (0, 0)
        if low < 0 or high < low:
            raise UsageError(
                f"layer_range = [{low}, {high}] is not a range: FROM is a layer's number, TO is one past the last",
                where=recipe.at((*source.place, "layer_range")),
            )
        length, wanted = high - low, first.layers[1] - first.layers[0] if first.layers else 0
        if length != wanted:
            raise UsageError(
                f"layer_range = [{low}, {high}] has {length} layer{'' if length == 1 else 's'}, but that of "
                f"{first.reference!r} (line {recipe.document.line((*first.place, 'layer_range'))}) has {wanted}",
                where=recipe.at((*source.place, "layer_range")),
                hint="All sources of a slice have as many layers; they are merged one by one.",
            )
