"""Lining up a recipe's tensors: which tensors of which models make each tensor of the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from nett.core.checkpoint import Checkpoint
from nett.core.errors import UsageError
from nett.core.layers import layer_of, precedes_layers
from nett.merge.heads import HEAD, is_tied
from nett.merge.job import Line, Operand, operand
from nett.merge.recipe_file import Recipe
from nett.merge.recipe_modules import only_stack, split
from nett.merge.recipe_parts import Part, Slice, Source
from nett.merge.recipe_values import depth_of


@final
@dataclass(frozen=True)
class Found:
    """One line, of which slice it is, and how deep in it its layer lies."""

    line: Line
    slice: Slice
    t: float


@final
@dataclass(frozen=True)
class Cut:
    """Where the layers of a part of the output come from: (model, its layer's number, how many layers it has) each,
    and how many the models had that the config speaks of."""

    part: str | None
    layers: tuple[tuple[Checkpoint, int, int], ...]
    stack: str


def line_up(recipe: Recipe, by_key: Mapping[str, Checkpoint]) -> tuple[list[Found], list[Cut]]:
    """The lines of the output, by the output's names, and the cuts of the parts that are stacked from slices."""
    models = [by_key[s.key] for s in recipe.sources if _takes_part(recipe, s)]
    names = sorted({name for model in models for name in model.tensors})
    found: list[Found] = []
    cuts: list[Cut] = []
    for part, owned in zip(recipe.parts, split(recipe, names).values(), strict=True):
        if part.is_cut:
            lines, cut = _stacked(recipe, part, owned, by_key)
            found += lines
            cuts += [cut] if cut else []
        else:
            found += _whole(part.slices[0], owned, by_key)
    return sorted(found, key=lambda one: one.line.name), cuts


def _takes_part(recipe: Recipe, source: Source) -> bool:
    """Whether a model is merged at all: base_model may be named for its config alone."""
    return any(s.key == source.key for one in recipe.slices for s in one.all_sources)


def _line(name: str, one: Slice, names: Mapping[str, str], by_key: Mapping[str, Checkpoint]) -> Line:
    """``names``: source's key -> the tensor's name there, for all sources whose model has it."""

    def of(source: Source) -> Operand:
        holder = by_key[next(iter(names))]
        return operand(by_key[source.key], names.get(source.key, next(iter(names.values()))), holder)

    return Line(name, of(one.base) if one.base else None, tuple(of(s) for s in one.tuned))


def _holders(one: Slice, name: str, by_key: Mapping[str, Checkpoint]) -> dict[str, str]:
    return {s.key: name for s in one.all_sources if name in by_key[s.key].tensors}


def _tied(one: Slice, name: str, by_key: Mapping[str, Checkpoint]) -> dict[str, str]:
    """The output layer of a slice whose models all tie it, where a model of another slice has one of its own."""
    tied = name == HEAD and all(is_tied(by_key[s.key]) for s in one.all_sources)
    return {s.key: name for s in one.all_sources} if tied else {}


def _whole(one: Slice, owned: Sequence[str], by_key: Mapping[str, Checkpoint]) -> Iterator[Found]:
    depths = depth_of(owned)
    for name in owned:
        if names := _holders(one, name, by_key):
            yield Found(_line(name, one, names, by_key), one, depths[name])


def _stacked(
    recipe: Recipe, part: Part, owned: Sequence[str], by_key: Mapping[str, Checkpoint]
) -> tuple[list[Found], Cut | None]:
    """What precedes the layers from the first slice, the layers in order, what follows them from the last slice."""
    stack = only_stack(recipe, part, owned)
    roles = {key: _layers(model, stack[0]) for key, model in by_key.items()} if stack else {}
    _check_ranges(recipe, part, roles, stack[0] if stack else None)
    found: list[Found] = []
    for name in owned:
        layer = layer_of(name)
        if stack is None or layer is None or layer.stack != stack[0]:
            one = part.slices[0 if precedes_layers(name) else -1]
            if names := _holders(one, name, by_key) or _tied(one, name, by_key):
                found.append(Found(_line(name, one, names, by_key), one, 0.0))
    taken: list[tuple[Checkpoint, int, int]] = []
    for one in part.slices if stack else ():
        low, high = one.sources[0].layers or (0, 0)
        for step in range(high - low):
            at = {s.key: roles[s.key].get(s.layers[0] + step if s.layers else 0, {}) for s in one.all_sources}
            t = step / (high - low - 1) if high - low > 1 else 1.0
            for role in sorted({role for layer in at.values() for role in layer}):
                # A model that lacks it is asked for it by its own layer's number, so that the error names that.
                names = {key: layer[role] for key, layer in at.items() if role in layer}
                lacking = next((s for s in one.all_sources if s.key not in names), None)
                if lacking is not None and lacking.layers is not None:
                    number = lacking.layers[0] + step
                    names[lacking.key] = f"{stack[0]}.{number}.{role}" if stack and stack[0] else f"{number}.{role}"
                output = f"{stack[0]}.{len(taken)}.{role}" if stack and stack[0] else f"{len(taken)}.{role}"
                found.append(Found(_line(output, one, names, by_key), one, t))
            first = one.sources[0]
            taken.append((by_key[first.key], low + step, len(roles[first.key])))
    return found, Cut(part.name, tuple(taken), stack[0]) if stack else None


def _layers(model: Checkpoint, stack: str) -> dict[int, dict[str, str]]:
    """Layer -> role -> the tensor's name."""
    found: dict[int, dict[str, str]] = {}
    for name in model.tensors:
        layer = layer_of(name)
        if layer is not None and layer.stack == stack:
            found.setdefault(layer.number, {})[layer.role] = name
    return found


def _check_ranges(recipe: Recipe, part: Part, roles: Mapping[str, Mapping[int, object]], stack: str | None) -> None:
    total = 0
    for one in part.slices:
        for source in one.sources:
            low, high = source.layers or (0, 0)
            held = len(roles[source.key]) if stack is not None else 0
            if high > held:
                raise UsageError(
                    f"layer_range = [{low}, {high}], but {source.reference!r} has "
                    + (f"{held} layers ({stack})" if stack is not None else "no layers in this module"),
                    where=recipe.at((*source.place, "layer_range")),
                    hint=f"TO is one past the last layer: at most {held}.",
                )
        total += (one.sources[0].layers or (0, 0))[1] - (one.sources[0].layers or (0, 0))[0]
    if stack is not None and not total:
        raise UsageError(
            "all slices are empty, so the output would have no layers", where=recipe.at((*part.place, "slices"))
        )
