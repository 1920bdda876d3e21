"""mergekit recipes, planned with mergekit's meaning (0.1.5) and carried out by this room's engine."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.dtypes import DTYPES
from nett.core.errors import NettError, UsageError, did_you_mean
from nett.core.layer_lists import recut
from nett.merge.job import Edit, Job, TensorTask, labels_of, plan_lines
from nett.merge.recipe_chat import plan_template
from nett.merge.recipe_file import Recipe
from nett.merge.recipe_lines import Cut, line_up
from nett.merge.recipe_parts import Source
from nett.merge.recipe_values import Asked, Resolver, Row
from nett.merge.references import called, opens_as, why_missing

VARIES = "differs from tensor to tensor; see: nett merge explain"


@final
@dataclass(frozen=True)
class Planned:
    """A recipe with its models' headers: the job, and each merged tensor's values."""

    recipe: Recipe
    job: Job
    resolver: Resolver
    rows: Mapping[str, Row]


def _open(
    recipe: Recipe, source: Source, opened: list[Checkpoint], steps: Mapping[str, Checkpoint | str]
) -> Checkpoint:
    first, plus, adapter = source.reference.partition("+")
    step = steps.get(first)
    if isinstance(step, Checkpoint) and not plus:
        return step
    if isinstance(step, Checkpoint) and os.path.exists(opens_as(adapter)):
        return step  # the adapter changes neither shapes nor types; it is opened over what the step wrote
    reference = f"{step}{plus}{opens_as(adapter)}" if isinstance(step, str) else opens_as(source.reference)
    try:
        checkpoint = open_checkpoint(reference, dense=True)
    except NettError as error:
        place = source.place if source.place == ("base_model",) else (*source.place, "model")
        where, hint = recipe.at(place), error.hint
        missing = not any(Path(part).exists() for part in (source.reference, source.reference.split("+")[0]))
        why = why_missing(source.reference)
        if why is not None or (missing and "@" in source.reference):
            raise UsageError(
                why
                or f"{source.reference!r} names a revision that is not in the local cache, and nett downloads nothing",
                where=where,
                hint="Download that revision with your usual client, or write the path of a folder.",
            ) from error
        if missing and hint is None:
            near = did_you_mean(first, steps)
            hint = (f"{near.strip()} That is a document of this file. " if "Did" in near else "") + (
                f"Paths are relative to the working folder, {os.getcwd()}. nett downloads nothing."
            )
        what = f"{error.where}: {error.what}" if error.where else error.what
        raise type(error)(what, where=where, hint=hint) from error
    opened.append(checkpoint)
    return checkpoint


def plan_recipe(
    recipe: Recipe,
    opened: list[Checkpoint],
    steps: Mapping[str, Checkpoint | str] | None = None,
    *,
    truncate: bool = False,
) -> Planned:
    """The job of a recipe, from headers alone. What was opened is added to ``opened``, for the caller to close.

    ``steps``: name -> what another document of the same file gives, as it is planned or where it was written.
    ``truncate``: cut vocabularies of different sizes to the smallest.
    """
    by_key = {s.key: _open(recipe, s, opened, steps or {}) for s in recipe.sources}
    vocabulary = None
    if recipe.tokenizer is not None:
        from nett.merge.vocabulary import unify

        vocabulary = unify(recipe, recipe.tokenizer, by_key)
        by_key = dict(vocabulary.models)
    elif truncate:
        from nett.merge.vocabulary import truncated

        vocabulary = truncated(recipe, by_key)
        by_key = dict(vocabulary.models)
    ground = by_key[recipe.base.key] if recipe.base else None
    tuned = [by_key[s.key] for s in recipe.tuned]
    found, cuts = line_up(recipe, by_key)
    label = {
        s.key: one
        for s, one in zip(recipe.tuned, labels_of(tuned, [called(s.reference) for s in recipe.tuned]), strict=True)
    }
    asked = [
        Asked(
            one.line.name,
            one.t,
            tuple(o.name for o in one.line.tuned),
            tuple((label[s.key], s.place, s.scope) for s in one.slice.tuned),
            one.slice.scopes,
        )
        for one in found
        if one.line.operands[0].info.dtype.is_float
    ]
    resolver = Resolver(recipe.document, recipe.words, asked)
    rows: dict[str, Row] = {}

    def resolve(name: str) -> dict[str, Any]:
        rows[name] = resolver.row(name)
        return resolver.parameters(rows[name])

    card = recipe.words.card
    tasks, notes = plan_lines(card, [one.line for one in found], resolve, recipe.out_dtype or recipe.dtype)
    if recipe.out_dtype is None and recipe.dtype is None:
        tasks = tuple(_promoted(task) for task in tasks)
    giver = ground if ground is not None else tuned[0]
    edit, said = _new_config(giver, cuts)
    edits, told = plan_template(recipe, giver, [by_key[s.key] for s in recipe.sources])
    job = Job(
        card,
        _one_base(recipe, by_key),
        tuple(tuned),
        tuple(label[s.key] for s in recipe.tuned),
        _summary(tasks),
        tasks,
        cast=recipe.dtype,
        recipe=recipe.document.text,
        notes=(
            *recipe.notes,
            *resolver.notes(),
            *_base_notes(recipe),
            *notes,
            *said,
            *told,
            *(vocabulary.notes if vocabulary else ()),
        ),
        vocabulary=vocabulary.record if vocabulary else None,
        giver=giver,
        edits=(*((edit,) if edit is not None else ()), *edits),
        ground=ground,
        references=_places(recipe, by_key, steps or {}),
    )
    return Planned(recipe, job, resolver, rows)


def _places(recipe: Recipe, by_key: Mapping[str, Checkpoint], steps: Container[str]) -> dict[str, str]:
    """Where the recipe's references lie; of an adapter that names its own base, with that base."""
    own = {s.reference: c for s in recipe.sources if (c := by_key[s.key]).format == "peft" and "+" not in s.reference}
    return recipe.places(steps) | {reference: adapter.reference for reference, adapter in own.items()}


def _one_base(recipe: Recipe, by_key: Mapping[str, Checkpoint]) -> Checkpoint | None:
    """The base of all slices; of slices with bases of their own, that of the first: each tensor names its own."""
    return by_key[recipe.slices[0].base.key] if recipe.slices[0].base is not None else None


def _new_config(giver: Checkpoint, cuts: Sequence[Cut]) -> tuple[Edit | None, list[str]]:
    """What rewrites config.json for layers that were cut and stacked, from headers; and what a reader should know."""
    config = giver.config()
    if not cuts or config is None:
        return None, []
    notes: list[str] = []
    for cut in cuts:
        picks = [(model.config() or {}, number, total) for model, number, total in cut.layers]
        config, said = recut(config, picks, cut.stack)
        notes += said

    def edit(files: dict[str, bytes]) -> dict[str, bytes]:
        return files | {"config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()}

    return edit, notes


def _promoted(task: TensorTask) -> TensorTask:
    """Without dtype and out_dtype, the narrowest type that holds all inputs' types."""
    types = {o.info.dtype.name for o in task.operands}
    if task.copied or len(types) == 1:
        return task
    return replace(task, dtype=DTYPES["F64" if "F64" in types else "F32"])


def _base_notes(recipe: Recipe) -> list[str]:
    if not recipe.words.has_base:
        return []
    listed = [
        s for one in recipe.slices for s in one.sources if one.base is not None and s.key == one.base.key and s.scope
    ]
    return [
        f"the parameters of {s.reference} (line {recipe.document.line(s.place)}) have no effect: it is the base, "
        "not one of the tuned"
        for s in listed
    ]


def _summary(tasks: Sequence[TensorTask]) -> dict[str, Any]:
    """Parameters as the receipt shows them: the value where it is one for all tensors."""
    merged = [t.parameters for t in tasks if not t.copied]
    return {name: value if all(p[name] == value for p in merged) else VARIES for name, value in merged[0].items()}
