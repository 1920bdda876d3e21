"""Mixtures whose layers differ in their number of experts, or whose router knows more experts than are stored: what no
config of transformers can say. A mark in ``config.json`` says it, and modules are fitted to it.

The mark is a list with an entry a mixture, in the order of the layers: ``{"experts": G, "map": [e_0, …, e_{E-1}]}``, with
a map where the router keeps its E rows and its choice j is answered by the stored expert e_j; without one, the router
has G rows. The remap is exact: two choices that one expert answers for are added up with their weights, as they would
be if it were stored twice. Stock loaders find tensors of other shapes than the config promises, and refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from nett.core.errors import Refused
from nett.core.expert_modules import mixtures

MARK = "nett_expert_map"  # in config.json


def fit_experts(model: Any, mark: Sequence[Mapping[str, Any]], where: Any) -> None:
    """Make each mixture of ``model`` as the mark says; what its parameters held is lost where shapes differ. Refused where
    the mark is of another model."""
    import torch

    found = mixtures(model)
    if len(found) != len(mark):
        raise Refused(f"{MARK} speaks of {len(mark)} mixtures, the model has {len(found)}", where=where)
    for mixture, said in zip(found, mark, strict=True):
        stored, table = int(said["experts"]), said.get("map")
        asked = mixture.count
        if table is not None and (len(table) != asked or not all(0 <= int(e) < stored for e in table)):
            raise Refused(
                f"{MARK} of {mixture.name} maps {len(table)} experts to {stored}, its router has {asked}", where=where
            )
        resize(mixture.experts, stored, asked)
        mixture.experts.num_experts = stored
        if table is None:
            resize(mixture.router, stored, asked)
            for name in ("num_experts", "out_features"):
                if hasattr(mixture.router, name):
                    setattr(mixture.router, name, stored)
        else:
            mixture.experts.register_forward_pre_hook(partial(_remapped, torch.tensor([int(e) for e in table])))


def _remapped(table: Any, _: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden, index, *more = given
    return (hidden, table.to(index.device)[index], *more)


def resize(module: Any, count: int, before: int) -> None:
    """Parameters and buffers of ``module`` with ``before`` rows get ``count``."""
    import torch

    if count == before:
        return
    for kind in (module._parameters, module._buffers):
        for name, old in list(kind.items()):
            if old is not None and old.dim() and old.shape[0] == before:
                new = torch.empty((count, *old.shape[1:]), dtype=old.dtype, device=old.device)
                kind[name] = torch.nn.Parameter(new, old.requires_grad) if kind is module._parameters else new
