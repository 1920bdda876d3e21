"""What a recipe's settings come to, tensor by tensor."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nett.core.errors import UsageError
from nett.core.registry import method

if TYPE_CHECKING:
    from nett.merge.recipe import Planned
    from nett.merge.recipe_values import Value

ALL = "all models"


@method(kind="measure", grain="corpus", title="Explain a recipe", command=True)
def explain(assets: Sequence[str], *, tensor: str = "*", json: bool = False) -> str | list[dict[str, Any]]:
    """Print the value that every parameter of a mergekit recipe takes for each tensor and model.

    Args:
        tensor: only tensors whose name fits this pattern (*, ? and [abc] as in a shell).
        json: a list of {tensor, t, model, parameter, value, from} instead of text; model is null where one value
            holds for all models. For a file of several documents each has a document in front: its name, or null.
    When to use: before running a recipe with filters, gradients or parameters in several places.
    When not: to learn what a method's parameters mean; nett show merge/METHOD tells that.
    Cost: reads headers only.
    Source: mergekit 0.1.5's rules of lookup; no paper.
    """
    from nett.core.match import matching
    from nett.merge.recipe_run import planned_steps
    from nett.merge.recipe_steps import load_steps

    if len(assets) != 1:
        raise UsageError(
            f"takes one recipe, but {len(assets)} were given",
            where="merge/explain",
            hint="nett merge explain RECIPE.yml",
        )
    with planned_steps(load_steps(Path(assets[0]))) as plans:
        several = len(plans) > 1
        names = dict.fromkeys(name for planned in plans for name in planned.rows)
        matching(tensor, names)
        rows: list[dict[str, Any]] = []
        texts = []
        for planned in plans:
            wanted = [name for name in planned.rows if fnmatch.fnmatchcase(name, tensor)]
            named: dict[str, Any] = {"document": planned.recipe.name} if several else {}
            rows += [named | row for row in rows_of(planned, wanted)]
            texts.append(text_of(planned, wanted))
        return rows if json else "\n\n".join(texts)


def rows_of(planned: Planned, tensors: Sequence[str]) -> list[dict[str, Any]]:
    """One record a value: tensor, t, model, parameter, value, where it comes from."""
    return [
        {
            "tensor": name,
            "t": planned.rows[name].t,
            "model": model,
            "parameter": parameter,
            "value": found.value,
            "from": found.source,
        }
        for name in tensors
        for model, values in _by_model(planned, name)
        for parameter, found in values.items()
    ]


def _by_model(planned: Planned, tensor: str) -> list[tuple[str | None, Mapping[str, Value]]]:
    row = planned.rows[tensor]
    return [(None, row.shared), *zip(row.models, row.each, strict=True)]


def text_of(planned: Planned, tensors: Sequence[str]) -> str:
    """The same for people. Tensors that stand in a row with equal values are listed above those values."""
    blocks: list[tuple[list[str], str]] = []
    for name in tensors:
        values = _values(planned, name)
        if blocks and blocks[-1][1] == values:
            blocks[-1][0].append(name)
        else:
            blocks.append(([name], values))
    copied = [t.name for t in planned.job.tasks if t.copied]
    parts = [_heading(planned), *("\n".join([*names, values]) for names, values in blocks)]
    if copied:
        parts.append("copied, not merged (no floating-point numbers): " + ", ".join(copied))
    return "\n\n".join(parts)


def _values(planned: Planned, tensor: str) -> str:
    from nett.merge.recipe_words import written

    width = max(len(n) for n in (ALL, *planned.job.labels))
    lines = []
    for model, values in _by_model(planned, tensor):
        if values:
            shown = "  ".join(f"{name} = {written(v.value)} ({v.source})" for name, v in values.items())
            lines.append(f"    {model or ALL:<{width}}  {shown}")
    return "\n".join(lines)


def _heading(planned: Planned) -> str:
    from nett.merge.recipe_words import written

    recipe, job = planned.recipe, planned.job
    types = sorted({t.dtype.alias for t in job.tasks if not t.copied})
    lines = [
        f"{recipe.document.file}{f', {recipe.name}' if recipe.name else ''}: {recipe.words.card.name}, "
        f"{len(planned.rows)} tensors",
        *([f"  base     {job.base.path}"] if job.base is not None else []),
        *(f"  base     {c.path} (of some slices)" for c in job.other_bases),
        *(f"  model    {label}: {c.path}" for label, c in zip(job.labels, job.tuned, strict=True)),
        f"  types    inputs {f'rounded to {job.cast.alias}' if job.cast else 'as they are'}, output {', '.join(types)}",
    ]
    if recipe.words.fixed:
        fixed = ", ".join(f"{name} = {written(value)}" for name, value in recipe.words.fixed.items())
        lines.append(f"  always   {fixed} (what mergekit does)")
    if job.vocabulary is not None:
        from nett.merge.vocabulary_words import vocabulary_lines

        lines += vocabulary_lines(job.vocabulary)
    return "\n".join([*lines, *(f"  note     {note}" for note in job.notes)])
