"""Parameters that transformers puts together from several tensors of the file, such as all experts of a layer.

How is transformers' own knowledge (its conversion mapping): which tensors, in which order, by which operations. Nothing
here knows a family of models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final


@final
@dataclass(frozen=True)
class Fused:
    """One parameter and what it is made of: (pattern of transformers' rule, name of a tensor), in the rule's order."""

    name: str
    sources: tuple[tuple[str, str], ...]
    rule: Any

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(tensor for _, tensor in self.sources)

    def value(self, model: Any, read: Callable[[str], Any]) -> Any:
        """The parameter's value; ``read``: name -> torch tensor."""
        rule = self.rule.copy(self.rule.source_patterns, self.rule.target_patterns, operations=self.rule.operations)
        for pattern, tensor in self.sources:
            rule.add_tensor(self.name, tensor, pattern, read(tensor))
        (made,) = rule.convert(self.name, model=model, config=model.config).values()
        return made[0] if isinstance(made, list) else made


def resolved_names(
    model: Any, names: Iterable[str], tensors: Collection[str]
) -> tuple[dict[str, str], dict[str, Fused]]:
    """For the parameters and buffers ``names`` of a model: those that are one tensor each, which transformers may call
    otherwise than files do; and those that are made of several."""
    known = set(names)
    found = {n: n for n in known if n in tensors}
    if len(found) == len(known):
        return found, {}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    renaming = [r for r in rules if isinstance(r, WeightRenaming)]
    others = [r for r in rules if not isinstance(r, WeightRenaming)]
    by_pattern = {pattern: r for r in others for pattern in r.source_patterns}
    state = dict(model.state_dict())
    several: dict[str, list[tuple[str, str]]] = {}
    for tensor in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(tensor, renaming, others, model.base_model_prefix, state)
        if name not in known:
            continue
        if pattern is None:
            found.setdefault(name, tensor)
        elif len(by_pattern[pattern].target_patterns) == 1:
            several.setdefault(name, []).append((pattern, tensor))
    fused = {}
    for name, sources in several.items():
        if name not in found:
            fused[name] = Fused(name, tuple(sources), by_pattern[sources[0][0]])
    return found, fused


def shape_of(fused: Fused, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape that :meth:`Fused.value` would have, from headers; None where the tensors do not fit together."""
    import torch

    try:
        made = fused.value(model, lambda name: torch.empty(shapes[name], device="meta"))
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError):
        return None
    return tuple(made.shape)
