"""What it costs to change one part of a model at a time, told at its end: each change goes through the rest of the model
as it is, and its predictions are set against the original's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.blocks import Linear, Skeleton, Walk
from nett.core.blocks.skeleton import put
from nett.core.dtypes import Array
from nett.core.progress import report
from nett.core.quality import Estimate, estimate
from nett.core.registry import Card
from nett.weights.answering import answers
from nett.weights.watching import moments_of, sharing


@final
@dataclass(frozen=True)
class Part:
    """Layers that change together: ``name`` is that of the block and of the layers in it."""

    block: int
    name: str
    layers: tuple[Linear, ...]

    @property
    def weights(self) -> int:
        return sum(layer.rows * layer.columns for layer in self.layers)


@final
@dataclass(frozen=True)
class Trial:
    """One part under one setting: KL to the original in nats, share of changed top-1 tokens, mean loss of log
    likelihood; bytes of the part's layers then."""

    part: Part
    setting: str
    kl: Estimate
    flips: float
    loss: float
    bytes: int


def parts_of(groups: Sequence[Sequence[Linear]], block: int, per: str) -> list[Part]:
    """The block's parts: itself, its layers that share an input, or each layer."""
    if per == "block":
        return [Part(block, str(block), tuple(layer for group in groups for layer in group))]
    if per == "input":
        return [Part(block, "+".join(layer.name.rpartition(".")[2] for layer in g), tuple(g)) for g in groups]
    return [Part(block, layer.name.rpartition(".")[2], (layer,)) for group in groups for layer in group]


def try_all(
    card: Card,
    skeleton: Skeleton,
    settings: Mapping[str, Mapping[str, Any]],
    windows: Any,
    *,
    per: str,
    wanted: Sequence[str] = (),
    calibration: Any = None,
    size: Callable[[Linear, Any], int],
) -> list[Trial]:
    """Every part under every setting (name -> the kernel's parameters). Memory: a set of hidden states for each
    setting and part of a block, the original's predictions, and the model's weights where they fit."""
    import torch

    walk = Walk(skeleton, windows)
    seen = Walk(skeleton, calibration) if calibration is not None else None
    reference = [logits.log_softmax(-1) for _, logits in Walk(skeleton, windows).through().logits()]
    found: list[Trial] = []
    report.begin("trials", len(skeleton), "blocks")
    for number in range(len(skeleton)):
        pending: list[tuple[Part, str, int, Walk]] = []
        with skeleton.block(number) as module, torch.no_grad():
            groups = sharing(walk, module, skeleton.linears(number))
            moments = moments_of(seen, module, groups, wanted) if seen is not None else {}
            for part in parts_of(groups, number, per):
                inside = [[layer for layer in group if layer in part.layers] for group in groups]
                for setting, parameters in settings.items():
                    values, nbytes = {}, 0
                    for group in filter(None, inside):
                        for layer, _, answer, *_ in answers(
                            card, skeleton, None, group, [parameters] * len(group), moments
                        ):
                            values[layer.name] = answer if isinstance(answer, torch.Tensor) else answer.dense()
                            nbytes += size(layer, answer)
                    with _changed(module, values):
                        branch = walk.branch(walk.hidden, number)
                        branch.run(module)
                    pending.append((part, setting, nbytes, branch))
            walk.run(module)
            if seen is not None:
                seen.run(module)
        for later in range(number + 1, len(skeleton)):
            with skeleton.block(later) as module:
                for *_, branch in pending:
                    branch.run(module)
        for part, setting, nbytes, branch in pending:
            kl, flips, loss = _against(reference, branch)
            found.append(Trial(part, setting, estimate(kl), float(flips.mean()), float(loss.mean()), nbytes))
        report.step(1)
    report.end()
    return found


@contextmanager
def _changed(module: Any, values: Mapping[str, Any]) -> Iterator[None]:
    before = {name: module.get_submodule(name).weight for name in values}
    for name, value in values.items():
        put(module, f"{name}.weight", value.float())
    try:
        yield
    finally:
        for name, weight in before.items():
            module.get_submodule(name)._parameters["weight"] = weight


def _against(reference: Sequence[Any], branch: Walk) -> tuple[Array, Array, Array]:
    """Window by window: KL, flips, loss of log likelihood."""
    rows = []
    for known, (ids, logits) in zip(reference, branch.logits(), strict=True):
        mine = logits.log_softmax(-1)
        a, b, following = known[:, :-1], mine[:, :-1], ids[:, 1:, None]
        kl = (a.exp() * (a - b)).sum(-1).mean(-1)
        flips = (a.argmax(-1) != b.argmax(-1)).float().mean(-1)
        loss = (a - b).gather(-1, following)[..., 0].mean(-1)
        rows += [(float(k), float(f), float(n)) for k, f, n in zip(kl, flips, loss, strict=True)]
    table = np.array(rows)
    return table[:, 0], table[:, 1], table[:, 2]
