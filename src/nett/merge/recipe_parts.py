"""What a recipe puts together: modules, in them slices of layers stacked in order, in them sources that are merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from nett.core.yaml_file import Place
from nett.merge.recipe_values import Scope
from nett.merge.references import located


@final
@dataclass(frozen=True)
class Source:
    """A model that a recipe names: its reference, where it is named, its own parameters, and which layers of it."""

    reference: str
    place: Place
    scope: Scope | None
    layers: tuple[int, int] | None = None  # from, to (exclusive); None for all, and all outside the layers

    @cached_property
    def key(self) -> str:
        """The same for every spelling of one path; looked for on the disk once."""
        return located(self.reference)


@final
@dataclass(frozen=True)
class Slice:
    """Sources whose layers are merged one by one; ``scopes`` from the nearest to the recipe's own."""

    place: Place
    sources: tuple[Source, ...]
    base: Source | None  # the base model as this slice has it; methods without a base have it among the sources
    scopes: tuple[Scope, ...]

    @property
    def tuned(self) -> tuple[Source, ...]:
        """The models that the kernel takes beside the base."""
        return tuple(s for s in self.sources if self.base is None or s.key != self.base.key)

    @property
    def all_sources(self) -> tuple[Source, ...]:
        return (*((self.base,) if self.base else ()), *self.tuned)


@final
@dataclass(frozen=True)
class Part:
    """A module of the model, or the whole of it (``name`` is None), as slices in the order of their layers."""

    name: str | None
    place: Place
    slices: tuple[Slice, ...]

    @property
    def is_cut(self) -> bool:
        """Whether layers are taken by number, and not whole models."""
        return self.slices[0].sources[0].layers is not None


def parts_of(plain: Mapping[str, Any], base: Source | None, has_base: bool) -> tuple[Part, ...]:
    """The parts of a checked recipe, ``has_base``: whether its method takes the base as an operand of its own."""

    def scopes(content: Mapping[str, Any], place: Place) -> tuple[Scope, ...]:
        return (Scope(content["parameters"], (*place, "parameters")),) if content.get("parameters") else ()

    def sources(entries: list[Any], place: Place) -> tuple[Source, ...]:
        return tuple(
            Source(
                entry["model"],
                (*place, i),
                next(iter(scopes(entry, (*place, i))), None),
                tuple(entry["layer_range"]) if "layer_range" in entry else None,
            )
            for i, entry in enumerate(entries)
        )

    def whole(content: Mapping[str, Any], place: Place, around: tuple[Scope, ...]) -> Slice:
        """Whole models. Methods without a base take base_model as one more, the last one unless it is listed."""
        listed = sources(content["models"], (*place, "models"))
        if base is not None and not has_base and all(s.key != base.key for s in listed):
            listed = (*listed, base)
        return Slice((*place, "models"), listed, base if has_base else None, around)

    def slices(content: Mapping[str, Any], place: Place, around: tuple[Scope, ...]) -> tuple[Slice, ...]:
        if "slices" not in content:
            return (whole(content, place, around),)
        made = []
        for i, entry in enumerate(content["slices"]):
            at: Place = (*place, "slices", i)
            found = sources(entry["sources"], (*at, "sources"))
            ground = Source(entry["base_model"], (*at, "base_model"), None) if entry.get("base_model") else base
            if ground is not None and has_base:
                ground = next((s for s in found if s.key == ground.key), ground)
            made.append(Slice(at, found, ground if has_base else None, (*scopes(entry, at), *around)))
        return tuple(made)

    top = scopes(plain, ())
    if "modules" not in plain:
        return (Part(None, (), slices(plain, (), top)),)
    return tuple(
        Part(name, ("modules", name), slices(content, ("modules", name), (*scopes(content, ("modules", name)), *top)))
        for name, content in plain["modules"].items()
    )
