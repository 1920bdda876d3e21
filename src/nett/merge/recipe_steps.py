"""A file of several recipes: each is a step, named ones are what later ones are made of, the unnamed one is the result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from nett.core.checkpoint import Checkpoint, TensorInfo
from nett.core.dtypes import Array
from nett.core.errors import NettError, UsageError
from nett.core.yaml_file import read_documents
from nett.merge.beside import side_files_of
from nett.merge.job import Job
from nett.merge.recipe_file import EXAMPLE, Recipe, check_recipe

_ORDER = "One document without a name is the result that --out gets; the others have names, by which it refers to them."


@final
@dataclass(frozen=True)
class Step:
    """One document: its recipe, and the names of the documents that it is made of."""

    recipe: Recipe
    needs: tuple[str, ...]

    @property
    def name(self) -> str:
        """For messages and folders; the result has none."""
        return self.recipe.name or ""


@final
class Promised(Checkpoint):
    """What a step will write, known from its plan: later steps are planned on it before any work starts."""

    format = "planned"
    files = ()

    def __init__(self, path: Path, job: Job) -> None:
        self.path = path
        self.tensors = {
            t.name: TensorInfo(t.name, t.dtype, t.shape, t.dtype.name, t.size * t.dtype.bytes) for t in job.tasks
        }
        self._files, _ = side_files_of(job)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        raise NettError(f"{name} is planned and not written yet", where=self.path)

    def close(self) -> None:
        """Nothing is held."""

    def beside(self) -> dict[str, bytes]:
        return dict(self._files)

    def config(self) -> dict[str, Any] | None:
        return json.loads(self._files["config.json"]) if "config.json" in self._files else None


def load_steps(file: Path, known: Mapping[str, str] | None = None) -> tuple[Step, ...]:
    """Read and check a file: its steps in an order in which they can be taken, the result last. UsageError for names
    that stand twice, for none or several results, for steps that need each other and for steps that nothing needs.
    ``known`` as in :func:`check_recipe`."""
    recipes = [check_recipe(document, known) for document in read_documents(file, EXAMPLE)]
    if len(recipes) == 1:
        (only,) = recipes
        if only.name is not None:
            line = only.document.line(("name",))
            only = replace(only, notes=(*only.notes, f"name (line {line}) has no effect in a file of one document"))
        return (Step(only, ()),)
    named: dict[str, Recipe] = {}
    results: list[Recipe] = []
    for recipe in recipes:
        if recipe.name is None:
            results.append(recipe)
            continue
        _check_name(recipe, recipe.name)
        if recipe.name in named:
            line = named[recipe.name].document.line(("name",))
            raise UsageError(f"the name {recipe.name!r} stands twice (line {line})", where=recipe.at(("name",)))
        named[recipe.name] = recipe
    if len(results) != 1:
        where = recipes[-1].at(("name",)) if not results else results[1].at(())
        raise UsageError(
            f"{'no document is' if not results else f'{len(results)} documents are'} without a name, "
            "so it is not plain which is the result",
            where=where,
            hint=_ORDER,
        )
    steps = {name: Step(recipe, tuple(_needs(recipe, named))) for name, recipe in named.items()}
    return (*_in_order(steps), Step(results[0], tuple(_needs(results[0], named))))


def _check_name(recipe: Recipe, name: str) -> None:
    if name in (".", "..") or any(c in name for c in "/\\+@\0") or name.startswith("."):
        raise UsageError(
            f"name = {name!r} cannot be the name of a document: it becomes a folder's, and + and @ mean something",
            where=recipe.at(("name",)),
            hint="Use letters, digits, - and _.",
        )


def _needs(recipe: Recipe, named: Mapping[str, Recipe]) -> Iterator[str]:
    found: set[str] = set()
    for source in recipe.sources:
        path, at, revision = source.reference.split("+")[0].partition("@")
        if path not in named:
            continue
        if at:
            line = named[path].document.line(("name",))
            raise UsageError(
                f"{path!r} is the document of line {line}, which has no revision {revision!r}",
                where=recipe.at(source.place),
            )
        if path not in found:
            found.add(path)
            yield path


def _in_order(steps: Mapping[str, Step]) -> list[Step]:
    """Each step after those that it needs; in the order of the file where that is free."""
    done: dict[str, Step] = {}
    path: list[str] = []

    def take(name: str) -> None:
        if name in done:
            return
        if name in path:
            circle = [*path[path.index(name) :], name]
            raise UsageError(
                f"the documents need each other: {' -> '.join(circle)}", where=steps[name].recipe.at(("name",))
            )
        path.append(name)
        for needed in steps[name].needs:
            take(needed)
        path.pop()
        done[name] = steps[name]

    for name in steps:
        take(name)
    return list(done.values())


def check_use(steps: tuple[Step, ...], *, kept: bool) -> None:
    """Refuse a step that nothing is made of, unless the user wants the steps themselves."""
    used = {name for step in steps for name in step.needs}
    for step in steps[:-1]:
        if step.name not in used and not kept:
            raise UsageError(
                f"no other document is made of {step.name!r}, so its work would be thrown away",
                where=step.recipe.at(("name",)),
                hint="Refer to it, remove it, or keep all steps with --keep-steps DIR.",
            )
