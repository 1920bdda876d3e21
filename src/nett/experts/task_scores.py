"""TCESS: how much a task wants each expert, from the router's logits on text of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, final

from nett.core.blocks import Walk
from nett.core.blocks.skeleton import put
from nett.core.errors import Refused
from nett.core.expert_modules import Mixture
from nett.core.progress import report
from nett.experts.opening import Opened
from nett.experts.protocol import Tensor
from nett.experts.view import FileLayer

Score = Literal["logit", "probability"]


@final
@dataclass(frozen=True)
class Measure:
    """What a token adds to the experts it selects: those with the ``top`` highest logits (0: as many as it is given),
    of these only the ones whose share among them, a softmax over the selected logits, is ``threshold`` or more; each by
    its logit, or by its probability among all experts. An expert that is not selected gets 0."""

    top: int = 1
    score: Score = "logit"
    threshold: float = 0.0

    def of(self, logits: Tensor, chosen: int) -> Tensor:
        """What tokens add: float64 [T, E] of logits [T, E]; ``chosen``: experts that a token is given."""
        import torch

        logits = logits.double()
        count = min(self.top or chosen, logits.shape[-1])
        highest, index = logits.topk(count, dim=-1)
        worth = highest if self.score == "logit" else logits.softmax(-1).gather(-1, index)
        worth = worth.where(highest.softmax(-1) >= self.threshold, worth.new_zeros(()))
        return torch.zeros_like(logits).scatter_(-1, index, worth)


def task_scores(model: Opened, texts: Sequence[Any], measure: Measure) -> list[Tensor]:
    """For each mixture the scores of each task: float64 ``[tasks, E]``, the mean over the tokens of its text of
    :meth:`Measure.of`. ``texts``: for each task token windows int64 ``[n, length]`` of one length; they go through the
    model together, so that its weights are read once."""
    import torch

    windows = torch.cat([torch.as_tensor(ids) for ids in texts])
    sizes = torch.tensor([int(torch.as_tensor(ids).numel()) for ids in texts])
    walk = Walk(model.skeleton, windows)
    by_block = {layer.number: layer for layer in model.layers}
    found, last = [], max(by_block)
    report.begin("task scores", last + 1, "blocks")
    for number in range(last + 1):
        with model.skeleton.block(number) as module:
            layer = by_block.get(number)
            if layer is None:
                walk.run(module)
            else:
                into = _Sums(layer, sizes, measure)
                with router_inputs(model.mixture(number), into.add):
                    walk.run(module)
                found.append(into.sums / sizes[:, None])
        report.step(1)
    report.end()
    return found


@final
class _Sums:
    """Of one mixture: float64 [tasks, E], added up as the tokens of all tasks come by, one task after the other."""

    def __init__(self, layer: FileLayer, sizes: Tensor, measure: Measure) -> None:
        import torch

        self.sums = torch.zeros((len(sizes), layer.count), dtype=torch.float64)
        self._rows, self._chosen, self._measure = layer.router().double(), layer.chosen, measure
        self._ends, self._seen = sizes.cumsum(0), 0

    def add(self, hidden: Tensor) -> None:
        import torch

        worth = self._measure.of(hidden.double().cpu() @ self._rows.T, self._chosen)
        at = torch.arange(self._seen, self._seen + len(worth))
        self.sums.index_add_(0, torch.bucketize(at, self._ends, right=True), worth)
        self._seen += len(worth)


@contextmanager
def router_inputs(mixture: Mixture, into: Callable[[Tensor], None]) -> Iterator[None]:
    """While this lasts, what comes to the mixture's router is given to ``into``, [T, H] a call."""
    if mixture.router is None:
        raise Refused(f"the router of {mixture.name} is no module of its own, so what it is given cannot be watched")

    def take(_: Any, given: tuple[Any, ...]) -> None:
        into(given[0].detach().reshape(-1, given[0].shape[-1]))

    handle = mixture.router.register_forward_pre_hook(take)
    try:
        yield
    finally:
        handle.remove()


class Seen(Exception):
    """What was to be seen was seen: what the model would do next need not be computed."""


def first_inputs(model: Opened, ids: Any) -> Tensor:
    """What the first router is given for the tokens of one query, int64 [1, n]: float32 [n, H]. No expert of the first
    mixture is read for that."""
    import torch

    layer, skeleton = model.layers[0], model.skeleton
    walk, found = Walk(skeleton, torch.as_tensor(ids)), list[Tensor]()
    for number in range(layer.number):
        with skeleton.block(number) as module:
            walk.run(module)
    module, experts = skeleton.blocks[layer.number], set(layer.place.experts)
    single = {n: t for n, t in skeleton.block_names(layer.number).items() if t not in experts}
    fused = {n: f for n, f in skeleton.block_fused(layer.number).items() if not experts.issuperset(f.tensors)}

    def take(hidden: Tensor) -> None:
        found.append(hidden)
        raise Seen

    try:
        for name, tensor in single.items():
            put(module, name, skeleton.tensor(tensor).float())
        for name, several in fused.items():
            put(module, name, several.value(skeleton.model, skeleton.tensor).float())
        with router_inputs(model.mixture(layer.number), take), suppress(Seen):
            walk.run(module)
    finally:
        for name in [*single, *fused]:
            put(module, name, None)
    return found[0]
