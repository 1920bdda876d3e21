"""What goes into the linear layers of a block: which of them share an input, and the moments of each input."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from nett.core.blocks import Linear, Walk
from nett.core.moments import Moments


def sharing(walk: Walk, module: Any, layers: Sequence[Linear]) -> list[list[Linear]]:
    """The layers that are run, those that are given the very same tensor together; in the order of their first run."""
    groups: dict[int, list[Linear]] = {}
    alive: list[Any] = []  # so that no address is used again while this lasts

    def look(layer: Linear, given: Any) -> None:
        if not any(layer in group for group in groups.values()):
            alive.append(given)
            groups.setdefault(id(given), []).append(layer)

    with watched(module, layers, look):
        walk.first(module)
    return list(groups.values())


def moments_of(
    walk: Walk, module: Any, groups: Sequence[Sequence[Linear]], wanted: Collection[str]
) -> Mapping[str, Moments]:
    """Layer -> the moments of its input over all windows; layers of a group have the same."""
    leaders = [group[0] for group in groups]
    found = {one.name: Moments(one.columns, wanted, walk.skeleton.device) for one in leaders}
    with watched(module, leaders, lambda layer, given: found[layer.name].add(given.float())):
        walk.run(module, keep=False)
    return {layer.name: found[group[0].name] for group in groups for layer in group}


@contextmanager
def watched(module: Any, layers: Sequence[Linear], look: Any) -> Iterator[None]:
    """``look(layer, input)`` before each of the layers is run."""
    handles = [
        module.get_submodule(layer.name).register_forward_pre_hook(
            lambda _, given, layer=layer: look(layer, given[0]) if given else None
        )
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
