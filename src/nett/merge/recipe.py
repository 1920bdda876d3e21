"""mergekit recipes, planned with mergekit's meaning (0.1.5) and carried out by this room's engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.dtypes import DTYPES
from nett.core.errors import NettError, UsageError
from nett.merge.job import Job, TensorTask, labels_of, plan_tensors
from nett.merge.recipe_file import Recipe, Source, load_recipe
from nett.merge.recipe_values import Resolver, Row

VARIES = "differs from tensor to tensor; see: nett merge explain"


@final
@dataclass(frozen=True)
class Planned:
    """A recipe with its models' headers: the job, and each merged tensor's values."""

    recipe: Recipe
    job: Job
    resolver: Resolver
    rows: Mapping[str, Row]


def _open(recipe: Recipe, source: Source, opened: list[Checkpoint]) -> Checkpoint:
    try:
        checkpoint = open_checkpoint(source.reference, dense=True)
    except NettError as error:
        where, hint = recipe.at((*source.place, "model")), error.hint
        missing = not any(Path(part).exists() for part in (source.reference, source.reference.split("+")[0]))
        if missing and "@" in source.reference:
            raise UsageError(
                f"{source.reference!r} names a revision, which needs a download, and nett reads local folders only",
                where=where,
                hint="Download that revision and write the path of its folder.",
            ) from error
        if missing and hint is None:
            hint = f"Paths are relative to the working folder, {os.getcwd()}. nett downloads nothing."
        what = f"{error.where}: {error.what}" if error.where else error.what
        raise type(error)(what, where=where, hint=hint) from error
    opened.append(checkpoint)
    return checkpoint


def plan_recipe(recipe: Recipe, opened: list[Checkpoint]) -> Planned:
    """The job of a recipe, from headers alone. What was opened is added to ``opened``, for the caller to close."""
    by_key = {s.key: _open(recipe, s, opened) for s in (*recipe.models, *([recipe.base] if recipe.base else []))}
    ground = by_key[recipe.base.key] if recipe.base else None
    base = ground if recipe.words.has_base else None
    tuned = [by_key[s.key] for s in recipe.tuned]
    labels = labels_of(tuned)
    everything = [*tuned, *([base] if base is not None else [])]
    names = sorted({n for c in everything for n, t in c.tensors.items() if t.dtype.is_float})
    models = [(label, s.place, s.scope) for label, s in zip(labels, recipe.tuned, strict=True)]
    resolver = Resolver(recipe.document, recipe.words, recipe.shared, models, names)
    rows: dict[str, Row] = {}

    def resolve(name: str) -> dict[str, Any]:
        rows[name] = resolver.row(name)
        return resolver.parameters(rows[name])

    card = recipe.words.card
    tasks, notes = plan_tensors(card, base, tuned, resolve, recipe.out_dtype or recipe.dtype)
    if recipe.out_dtype is None and recipe.dtype is None:
        tasks = tuple(_promoted(task) for task in tasks)
    job = Job(
        card,
        base,
        tuple(tuned),
        labels,
        _summary(tasks),
        tasks,
        cast=recipe.dtype,
        recipe=recipe.document.text,
        notes=(*resolver.notes(), *_base_notes(recipe), *notes),
        giver=ground,
    )
    return Planned(recipe, job, resolver, rows)


def _promoted(task: TensorTask) -> TensorTask:
    """Without dtype and out_dtype, the narrowest type that holds all inputs' types."""
    types = {o.info.dtype.name for o in task.operands}
    if task.copied or len(types) == 1:
        return task
    return replace(task, dtype=DTYPES["F64" if "F64" in types else "F32"])


def _base_notes(recipe: Recipe) -> list[str]:
    if not recipe.words.has_base or recipe.base is None:
        return []
    listed = next((m for m in recipe.models if m.key == recipe.base.key and m.scope), None)
    if listed is None:
        return []
    line = recipe.document.line(listed.place)
    return [f"the parameters of {listed.reference} (line {line}) have no effect: it is the base, not one of the tuned"]


def _summary(tasks: Sequence[TensorTask]) -> dict[str, Any]:
    """Parameters as the receipt shows them: the value where it is one for all tensors."""
    merged = [t.parameters for t in tasks if not t.copied]
    return {name: value if all(p[name] == value for p in merged) else VARIES for name, value in merged[0].items()}


def run_recipe(
    file: Path,
    *,
    out: Path,
    shard_size: str = "5GB",
    threads: int = 0,
    speak: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Run a mergekit recipe and write the result to ``out``. Returns the receipt, which holds the recipe's text.

    Raises UsageError naming file, line and method for anything the recipe says that cannot be done as it says it;
    Refused where the models do not fit together or the disk has no room.
    """
    from nett.merge.engine import execute

    recipe = load_recipe(file)
    opened: list[Checkpoint] = []
    try:
        planned = plan_recipe(recipe, opened)
        return execute(
            planned.job,
            out=out,
            shard_size=shard_size,
            threads=threads,
            speak_check=speak,
            overwrite=overwrite,
            dry_run=dry_run,
        )
    finally:
        for checkpoint in opened:
            checkpoint.close()
