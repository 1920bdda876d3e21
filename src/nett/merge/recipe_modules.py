"""Which module of a model each tensor belongs to, told from its name: no family of models is known here."""

from __future__ import annotations

from collections.abc import Sequence

from nett.core.errors import UsageError
from nett.core.layers import layer_of
from nett.core.match import layer_number
from nett.merge.recipe_file import Recipe
from nett.merge.recipe_parts import Part

REST = ("default", "text_decoder", "shared")  # what no other module of the recipe claims
_WORDS = {  # module -> parts of tensor names that mark it, beside its own name
    "multi_modal_projector": ("merger", "deepstack_merger_list", "mm_projector", "projector", "connector"),
    "vision_tower": ("vision_model", "visual", "vision_encoder"),
    "vision_model": ("vision_tower", "visual", "vision_encoder"),
}


def _claim(module: str, tensor: str) -> int:
    """How deep in the tensor's name the module is named: the deeper claim wins. -1 where it is not named."""
    deepest = -1
    for words in (module, *_WORDS.get(module, ())):
        at = f".{tensor}.".rfind(f".{words}.")
        if at >= 0:
            deepest = max(deepest, at + len(words))
    return deepest


def split(recipe: Recipe, names: Sequence[str]) -> dict[str | None, list[str]]:
    """Module -> its tensors, in order. UsageError for tensors that no module claims, and for empty modules."""
    if recipe.parts[0].name is None:
        return {None: list(names)}
    modules = [part.name for part in recipe.parts if part.name is not None]
    rest = [m for m in modules if m in REST]
    if len(rest) > 1:
        place = next(part.place for part in recipe.parts if part.name == rest[1])
        raise UsageError(
            f"the modules {rest[0]!r} and {rest[1]!r} both mean what no other module claims",
            where=recipe.at(place),
            hint="Keep one of them.",
        )
    found: dict[str | None, list[str]] = {m: [] for m in modules}
    for name in names:
        depth, best = max(((_claim(m, name), m) for m in modules), key=lambda claim: claim[0])
        if depth < 0 and not rest:
            raise UsageError(
                f"no module claims the tensor {name!r}, so the output would lack it",
                where=recipe.at(("modules",)),
                hint=f"The models hold: {', '.join(_holdings(names))}. Name each as a module, or add 'default' "
                "for all that is left.",
            )
        found[best if depth >= 0 else rest[0]].append(name)
    for part in recipe.parts:
        if not found[part.name]:
            raise UsageError(
                f"the models have no tensor of the module {part.name!r}",
                where=recipe.at(part.place),
                hint=f"They hold: {', '.join(_holdings(names))}. 'default' is all that no other module names.",
            )
    return found


def _holdings(names: Sequence[str]) -> list[str]:
    """The parts that a model's names fall into: without their layers' numbers, as modules may be called."""
    return list(dict.fromkeys(n.split(".layers.")[0].split(".block")[0].split(".")[0] for n in names))


def stacks_of(names: Sequence[str]) -> dict[str, int]:
    """Stack of layers -> how many layers it has, as far as the names tell."""
    found: dict[str, int] = {}
    for name in names:
        if layer := layer_of(name):
            found[layer.stack] = max(found.get(layer.stack, 0), layer.number + 1)
    return found


def only_stack(recipe: Recipe, part: Part, names: Sequence[str]) -> tuple[str, int] | None:
    """The stack whose layers a part's slices are of, and its length; None for a part without layers.

    UsageError where there are several: a slice's numbers must say which layers they mean.
    """
    stacks = stacks_of(names)
    usual = {stack: n for stack, n in stacks.items() if layer_number(f"{stack}.0.x") is not None}
    chosen = usual or stacks
    if not chosen:
        return None
    if len(chosen) > 1:
        shown = ", ".join(f"{stack} ({n} layers)" for stack, n in chosen.items())
        raise UsageError(
            f"the models have several stacks of layers, so slices of layers must say which: {shown}",
            where=recipe.at((*part.place, "slices")),
            hint="Put the slices under 'modules', one module a stack, such as: modules: {"
            + ", ".join(f"{stack.split('.')[0] or stack}: {{slices: […]}}" for stack in list(chosen)[:2])
            + "}.",
        )
    return next(iter(chosen.items()))
