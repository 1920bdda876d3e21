"""The optimizer of HESSO-CRIC: which units go is searched for, and corrected, before any of them fades for good (P21)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from nett.core.errors import Refused, UsageError
from nett.core.structure import Structure
from nett.weights.training.base import StructuredOptimizer
from nett.weights.training.choice import lowest, wanted

TRIALS = (0.25, 0.5, 0.75)  # shares of one group that are zeroed to see what the loss does
_EACH = 2  # steps of a trial: one at whole weights, one with the zeros


@final
class HessoCric(StructuredOptimizer):
    """See :func:`nett.weights.hesso_cric`. Phases: ``before``, ``trials`` (weights rest), ``cycles`` (each ends where it
    began), ``fading`` and ``after``. The search leaves no trace but its choice: weights, buffers and the optimizer's
    state are as they were before it."""

    method = "weights/hesso_cric"

    def __init__(self, model: Any, structure: Structure, base: torch.optim.Optimizer, settings: Mapping[str, Any]):
        super().__init__(model, structure, base, settings)
        sizes = [s.size for s in self.slices]
        self.target = wanted(
            sizes, settings["sparsity"], each=settings["scope"] == "layer", divisible=settings["divisible"]
        )
        self.asked = sum(self.target) if isinstance(self.target, list) else self.target
        self.phase, self.since = "before", 0  # steps taken in this phase
        self.cycle = 0
        self.sums = [torch.zeros(n) for n in sizes]  # of the scores
        self.count = 0
        self.losses = torch.zeros(len(sizes), dtype=torch.float64)  # with units zeroed, summed over trials
        self.whole = 0.0  # losses at whole weights, summed over the trials
        self.violating, self.trial, self.past = ([torch.zeros(n, dtype=torch.bool) for n in sizes] for _ in range(3))
        self.kept: dict[str, Any] = {}  # what is put back

    @property
    def search_steps(self) -> tuple[int, int]:
        """The fewest and the most steps that the search takes."""
        if not self.asked:
            return 0, 0
        trials, sampling = _EACH * len(TRIALS) * len(self.slices), self.settings["sampling"]
        return trials + sampling, trials + self.settings["cycles"] * sampling

    def _advance(self, loss: float | None) -> None:
        if not self.asked or self.steps <= self.settings["start"]:
            self.base.step()
            return
        if self.phase == "before":
            self._turn("trials")
            self.kept = self._snapshot()
        if self.phase == "trials":
            self._try(loss)
        elif self.phase == "cycles":
            self._correct()
        elif self.phase == "fading":
            self.base.step()
            self.since += 1
            self._fade(self.since - 1, self.settings["steps"])
            if self.since == self.settings["steps"]:
                self._turn("after")
        else:
            self.base.step()
            self._scale(self.zero, 0.0)

    def _turn(self, phase: str) -> None:
        self.phase, self.since = phase, 0

    def _try(self, loss: float | None) -> None:
        """Odd steps: the loss and the scores at whole weights, then zeros; even ones: the loss with them."""
        if loss is None:
            raise UsageError(
                "the search needs the loss of each step", where=self.method,
                hint="Write optimizer.step(loss=loss), or give step a closure that returns it.",
            )  # fmt: skip
        if not math.isfinite(loss):
            raise Refused(f"the loss of step {self.steps} is {loss}, by which nothing can be chosen", where=self.method)
        group, part = divmod(self.since // _EACH, len(TRIALS))
        if self.since % _EACH == 0:
            self.whole += loss
            before = self._weights()
            self.base.step()
            scores = self._collect(before)
            self._put_back(moments=False)
            one = self.slices[group]
            count = max(1, min(one.size, int(one.size * TRIALS[part])))
            one.scale(scores[group].cpu().argsort(stable=True)[:count], 0.0)
        else:
            self.losses[group] += loss
            self._put_back(moments=False)
        self.since += 1
        if self.since == _EACH * len(TRIALS) * len(self.slices):
            self._put_back()
            self._turn("cycles")

    def _correct(self) -> None:
        """One step of a cycle: the violating units fade, others that come up as low are marked for the next."""
        before = self._weights()
        self.base.step()
        scores = self._collect(before)
        low = self._lowest(scores)
        duration = self.settings["sampling"]
        if self.since == 0:
            self.violating = low if self.cycle == 0 else self._next()
            self.past = [p | v for p, v in zip(self.past, self.violating, strict=True)]
            self.trial = [torch.zeros_like(v) for v in self.violating]
        self.trial = [t | (x & ~p) for t, x, p in zip(self.trial, low, self.past, strict=True)]
        self._scale(self.violating, (duration - self.since - 1) / (duration - self.since))
        self.since += 1
        if self.since == duration:
            self._put_back()
            self.cycle, self.since = self.cycle + 1, 0
            if self.cycle == self.settings["cycles"] or _count(self._next()) <= self.settings["tolerance"]:
                self._settle()

    def _next(self) -> list[Tensor]:
        return [t & ~p for t, p in zip(self.trial, self.past, strict=True)]

    def _settle(self) -> None:
        """The choice: mean scores, and for each group what the loss said of it in the trials, spread over its units."""
        mean_whole = self.whole / (len(TRIALS) * len(self.slices))
        ratio = self.losses / len(TRIALS) / mean_whole
        total = [s / self.count + float(r) / len(s) for s, r in zip(self.sums, ratio, strict=True)]
        self.fading = self._lowest(total)
        self.kept = {}
        self._turn("fading")

    def _lowest(self, scores: list[Tensor]) -> list[Tensor]:
        return lowest(scores, self.zero, self.target, divisible=self.settings["divisible"])

    def _collect(self, before: Mapping[str, Tensor]) -> list[Tensor]:
        scores = self._scores(before)
        self.sums = [s + x.cpu() for s, x in zip(self.sums, scores, strict=True)]
        self.count += 1
        return scores

    def _snapshot(self) -> dict[str, Any]:
        tensors = {n: t.detach().clone() for n, t in self.model.state_dict(keep_vars=True).items()}
        return {"model": tensors, "base": copy.deepcopy(self.base.state_dict()["state"])}

    def _put_back(self, *, moments: bool = True) -> None:
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            tensor.detach().copy_(self.kept["model"][name])
        if moments:
            groups = self.base.state_dict()["param_groups"]  # a scheduler's learning rates stay
            self.base.load_state_dict({"state": copy.deepcopy(self.kept["base"]), "param_groups": groups})
            self.param_groups, self.state = self.base.param_groups, self.base.state

    @property
    def done(self) -> bool:
        return not self.asked or self.phase == "after"

    @property
    def progress(self) -> dict[str, Any]:
        seen = {"phase": self.phase, "cycle": self.cycle, "violating": _count(self.violating)}
        return {**super().progress, "asked": self.asked, **seen}

    def _missing(self) -> str:
        return f"it is in the phase {self.phase!r}"

    def _more(self) -> dict[str, Any]:
        names = [s.name for s in self.slices]
        lists = {k: dict(zip(names, getattr(self, k), strict=True)) for k in ("sums", "violating", "trial", "past")}
        plain = {k: getattr(self, k) for k in ("phase", "since", "cycle", "count", "whole", "losses")}
        return copy.deepcopy({**lists, **plain, "kept": self.kept})

    def _resume(self, found: Mapping[str, Any]) -> None:
        for name in ("sums", "violating", "trial", "past"):
            setattr(self, name, [found[name][s.name].cpu().clone() for s in self.slices])
        for name in ("phase", "since", "cycle", "count", "whole"):
            setattr(self, name, found[name])
        self.losses, self.kept = found["losses"].cpu().clone(), copy.deepcopy(found["kept"])
        if self.phase in ("trials", "cycles") and set(self.kept.get("model", {})) != set(self.model.state_dict()):
            raise Refused("the state was saved for a network with other tensors", where=self.method)


def _count(masks: list[Tensor]) -> int:
    return sum(int(m.sum()) for m in masks)
