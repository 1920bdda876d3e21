"""The optimizer of HESSO: periods of scoring, choosing and fading (P21)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch

from nett.core.errors import UsageError
from nett.core.structure import Structure
from nett.weights.training.base import StructuredOptimizer
from nett.weights.training.choice import lowest, part_of, wanted


@final
class Hesso(StructuredOptimizer):
    """See :func:`nett.weights.hesso`. A period has ``duration`` steps: units are chosen in its first, at the weights from
    before that step, and are zero after its last but one (a period of one step does both)."""

    method = "weights/hesso"

    def __init__(self, model: Any, structure: Structure, base: torch.optim.Optimizer, settings: Mapping[str, Any]):
        super().__init__(model, structure, base, settings)
        if settings["steps"] < settings["periods"]:
            raise UsageError(
                f"steps = {settings['steps']} are fewer than periods = {settings['periods']}: periods <= steps",
                where=self.method,
            )
        self.period = 0  # in which units were chosen last
        self.duration = settings["steps"] // settings["periods"]
        sizes = [s.size for s in self.slices]
        self.target = wanted(
            sizes, settings["sparsity"], each=settings["scope"] == "layer", divisible=settings["divisible"]
        )

    def _advance(self, loss: float | None) -> None:
        start, periods = self.settings["start"], self.settings["periods"]
        gone = self.steps - start
        idle = not (sum(self.target) if isinstance(self.target, list) else self.target)
        chooses = gone > 0 and self.period < periods and (gone - 1) % self.duration == 0 and not idle
        before = self._weights() if chooses else {}
        self.base.step()
        if idle or gone <= 0:
            return
        if chooses:
            self.period += 1
            due = part_of(self.target, self.period, periods)
            now = [int(z.sum()) for z in self.zero]
            counts = due - sum(now) if isinstance(due, int) else [d - n for d, n in zip(due, now, strict=True)]
            self.fading = lowest(self._scores(before), self.zero, counts, divisible=self.settings["divisible"])
        t = gone % self.duration
        if any(bool(f.any()) for f in self.fading):
            self._fade(t, self.duration)
        else:
            self._scale(self.zero, 0.0)

    @property
    def done(self) -> bool:
        idle = not (sum(self.target) if isinstance(self.target, list) else self.target)
        return idle or (self.period == self.settings["periods"] and not any(bool(f.any()) for f in self.fading))

    @property
    def progress(self) -> dict[str, Any]:
        asked = sum(self.target) if isinstance(self.target, list) else self.target
        return {**super().progress, "asked": asked, "period": self.period, "periods": self.settings["periods"]}

    def _missing(self) -> str:
        last = self.settings["start"] + self.settings["periods"] * self.duration
        return f"pruning goes on until step {last}"

    def _more(self) -> dict[str, Any]:
        return {"period": self.period}

    def _resume(self, found: Mapping[str, Any]) -> None:
        self.period = int(found["period"])
