"""The run of SlimMoE: rank, cut, distil, and again; from the state that a killed run left, where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from nett.core.errors import Refused
from nett.core.expert_modules import mixtures
from nett.core.progress import report
from nett.core.shelf import Shelf
from nett.core.token_batches import batches, checked, next_token_loss, rate, sound
from nett.core.whole_model import Shrunk
from nett.experts import neurons
from nett.experts.neurons import Scores


@final
@dataclass(frozen=True)
class Settings:
    """The parameters of :func:`nett.experts.slimmoe.slimmoe`."""

    width: float
    stages: int
    steps: int
    by: str
    top: int
    sample: int
    lr: float
    batch: int
    multiple: int
    every: int
    seed: int


def stage_widths(before: int, how: Settings) -> list[int]:
    """Neurons of an expert after each cut: shrinking by one ratio, each rounded to the multiple; no cut that cuts nothing."""
    found, last = [], before
    for stage in range(1, how.stages + 1):
        exact = before * how.width ** (stage / how.stages)
        now = max(how.multiple, how.multiple * int(np.floor(exact / how.multiple + 0.5)))
        if now < last:
            found.append(now)
            last = now
    return found


def stage_steps(steps: int, stages: int) -> list[int]:
    """All steps, shared out evenly; what is left over goes to the last."""
    each = steps // max(1, stages)
    return [each] * (stages - 1) + [steps - each * (stages - 1)]


def slimmed(model: Any, windows: Tensor, shelf: Shelf, how: Settings) -> Shrunk:
    """See :func:`nett.experts.slimmoe.slimmoe`. The model is changed in place."""
    before = neurons.width_of(model)
    widths = stage_widths(before, how)
    figures: dict[str, Any] = {"width before": before}
    if not widths:
        note = f"width = {how.width:g} of {before} neurons, in multiples of {how.multiple}: nothing was cut"
        return Shrunk(model, figures | {"width after": before}, [note] if how.width < 1 else [])
    neurons.check_width_can_be_said(model)
    windows = checked(model, windows, how.batch)
    if windows.device.type == "cpu":
        model.set_experts_implementation("eager")  # grouped kernels ask for aligned widths and are no faster there
    run = _Run(model.eval(), windows, shelf, how, widths)
    run.go()
    notes = []
    if run.silent:
        notes.append(f"{run.silent} experts felt nothing of the sample; their neurons were ranked by size")
    tenth = [max(1, len(losses) // 10) for losses in run.losses]
    figures |= {
        "width after": widths[-1],
        "widths": widths,
        "steps": [len(losses) for losses in run.losses],
        "kl at the start of each stage": [float(np.mean(x[:n])) for x, n in zip(run.losses, tenth, strict=True) if x],
        "kl at the end of each stage": [float(np.mean(x[-n:])) for x, n in zip(run.losses, tenth, strict=True) if x],
    }
    return Shrunk(run.model.requires_grad_(False), figures, notes, _charts(run.losses, widths))


@final
@dataclass
class _Run:
    model: Any
    windows: Tensor
    shelf: Shelf
    how: Settings
    widths: list[int]
    losses: list[list[float]] = field(default_factory=list)
    silent: int = 0
    teacher: Any = None
    _moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def go(self) -> None:
        self.teacher = deepcopy(self.model).requires_grad_(False)
        state = self.shelf.take()
        first = self._back(*state) if state is not None else 0
        counts = stage_steps(self.how.steps, len(self.widths))
        report.begin("distilling", sum(counts), "steps")
        report.step(sum(map(len, self.losses)))
        for stage in range(first, len(self.widths)):
            if stage == len(self.losses):  # not one that was left half done
                self._cut(stage)
                self.losses.append([])
            self._distil(stage, counts[stage])
        report.end()

    @torch.enable_grad()
    def _cut(self, stage: int) -> None:
        sizes = [neurons.size(m) for m in mixtures(self.model)]
        scores = self._scores(sizes, stage)
        self.silent = sum(int((s.sum(1) == 0).sum()) for s in scores)
        neurons.cut(self.model, [neurons.kept(s, z, self.widths[stage]) for s, z in zip(scores, sizes, strict=True)])

    def _scores(self, sizes: Scores, stage: int) -> Scores:
        how, found = self.how, mixtures(self.model)
        if how.by == "magnitude":
            return sizes
        if how.by == "chance":
            draw = torch.Generator().manual_seed(1000 * how.seed + stage)
            return [torch.rand(s.shape, generator=draw, dtype=torch.float64) for s in sizes]
        self.model.requires_grad_(False)
        for mixture in found:
            mixture.experts.requires_grad_(True)
        sums = [torch.zeros_like(s) for s in sizes]
        count = min(how.sample, len(self.windows))
        chosen = self.windows[torch.linspace(0, len(self.windows) - 1, count).round().long()]
        for at, ids in enumerate(torch.split(chosen, how.batch)):
            loss = self._ranking_loss(ids)
            sound(loss, at, "ranking")
            loss.backward()  # type: ignore[no-untyped-call]
            for total, mixture in zip(sums, found, strict=True):
                total += neurons.felt(mixture)
            self.model.zero_grad(set_to_none=True)
        return sums

    def _ranking_loss(self, ids: Tensor) -> Tensor:
        logits = self.model(input_ids=ids, use_cache=False).logits
        if self.how.by == "text":
            return next_token_loss(logits, ids)
        return neurons.distil_loss(logits, self._taught(ids), self.how.top)

    @torch.no_grad()
    def _taught(self, ids: Tensor) -> Tensor:
        found: Tensor = self.teacher(input_ids=ids, use_cache=False).logits
        return found

    @torch.enable_grad()
    def _distil(self, stage: int, steps: int) -> None:
        how, losses = self.how, self.losses[stage]
        self.model.requires_grad_(True)
        named = dict(self.model.named_parameters())
        optimizer = torch.optim.AdamW(named.values(), lr=how.lr, weight_decay=0.0)
        for name, moments in self._moments.items():
            optimizer.state[named[name]] = dict(moments)
        self._moments = {}
        for step, ids in enumerate(batches(self.windows, how.batch, steps, how.seed + 1000 * stage)):
            if step < len(losses):
                continue
            for group in optimizer.param_groups:
                group["lr"] = how.lr * rate(step, steps)
            loss = neurons.kl(self.model(input_ids=ids, use_cache=False).logits, self._taught(ids))
            losses.append(sound(loss, step, f"stage {stage + 1} of the distillation"))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            report.step(1)
            if (step + 1) % how.every == 0 or step + 1 == steps:
                self._lay(stage, named, optimizer)

    def _lay(self, stage: int, named: Mapping[str, Tensor], optimizer: Any) -> None:
        tensors = {f"weight {name}": p.detach() for name, p in named.items()}
        for name, p in named.items():
            tensors |= {f"{key} {name}": value for key, value in optimizer.state.get(p, {}).items()}
        self.shelf.lay(tensors, {"stage": stage, "losses": self.losses, "silent": self.silent})

    def _back(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> int:
        """Take up a state: weights, moments, losses. Returns its stage."""
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            what, _, name = key.partition(" ")
            by_name.setdefault(name, {})[what] = value.clone()  # aligned as torch does it: sums go by that
        weights = {name: one.pop("weight").to(self.windows.device) for name, one in by_name.items()}
        for mixture in mixtures(self.model):
            names = {id(p): n for n, p in self.model.named_parameters()}
            both, down = (names[id(p)] for p in (mixture.experts.gate_up_proj, mixture.experts.down_proj))
            neurons.put(mixture, weights[both], weights[down])
        if set(weights) != {n for n, _ in self.model.named_parameters()}:
            raise Refused("the state that an interrupted run left is of another model")
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(weights[name])
        neurons.tell_width(self.model)
        self.losses, self.silent = [list(x) for x in about["losses"]], int(about["silent"])
        steps = stage_steps(self.how.steps, len(self.widths))
        stage = int(about["stage"])
        if len(self.losses[stage]) >= steps[stage]:
            return stage + 1
        where = self.windows.device
        self._moments = {
            name: {key: value if key == "step" else value.to(where) for key, value in one.items()}
            for name, one in by_name.items()
            if one
        }
        return stage


def _charts(losses: list[list[float]], widths: list[int]) -> list[dict[str, Any]]:
    series, first = {}, 0
    for width, one in zip(widths, losses, strict=True):
        if one:
            series[f"{width} neurons"] = [[first + i, loss] for i, loss in enumerate(one)]
        first += len(one)
    if not series:
        return []
    return [{"kind": "lines", "title": "Distilling", "xlabel": "step", "ylabel": "KL, nats a token", "series": series}]
