"""P60, SlimMoE: are narrower experts, cut in stages with distillation, better than fewer experts of full width?

The rule of the verdict (written from the paper's abstract before any number was known). A cell is a mixture of one size,
trained on code, prose and sums; right is a byte of unseen text that is the likeliest one. All ways end with a quarter of the
experts' weights and see equally many windows of distillation (KL to the whole mixture, AdamW), each at the better of two
learning rates by nats a byte on other unseen text.

1. Slimming in two stages beats dropping three quarters of the experts (REAP) and distilling what is left: in the mean over
   the cells by more than two standard errors, and nowhere is it worse by more than two.
2. Two stages beat one cut, likewise.
3. It beats a small mixture of the same shape distilled from a random start, likewise.
4. Neurons ranked by the distillation loss beat neurons chosen by chance, likewise.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from claims.mixture_texts import KINDS
from claims.mixture_ways import Subject, outcomes, smaller, subjects
from claims.outcomes import Cell, Outcomes, better, say_gaps, spread
from nett.core.claims import Check, Figure, Result
from nett.core.shelf import NoShelf
from nett.core.standing import Point
from nett.core.token_batches import batches, rate
from nett.experts import neurons
from nett.experts.slimmoe import slimmoe

PAPER = "P60"
CLAIM = (
    "A mixture whose experts all stay and become narrower, in stages with distillation, is better than one of fewer "
    "experts at the same size and the same distillation."
)
METHODS = ["experts/slimmoe"]
SHARE, STEPS, BATCH = (
    0.25,
    60,
    12,
)  # an eighth of the windows that the mixture was trained on; the paper distils on a tenth
RATES = (1e-3, 3e-3)
WHOLE, SLIM, ONCE, DROPPED, SCRATCH, CHANCE = (
    "whole mixture",
    "two stages",
    "one cut",
    "fewer experts",
    "from a random start",
    "neurons by chance",
)


@dataclass
class Gathered:
    outcomes: Outcomes = field(default_factory=Outcomes)
    figures: list[Figure] = field(default_factory=list)
    bytes: dict[tuple[Cell, str], int] = field(default_factory=dict)
    seconds: dict[Cell, float] = field(default_factory=dict)

    def add(self, subject: Subject, name: str, model: Any, note: str = "") -> float:
        right, nats = outcomes(model, subject.windows("test"))
        self.outcomes.correct.setdefault(subject.cell, {}).setdefault(subject.seed, {})[name] = right
        percent = 100 * float(np.mean([r.mean() for r in right.values()]))
        self.figures.append(Figure(*subject.cell, subject.seed, name, percent, note=note))
        self.figures.append(Figure(*subject.cell, subject.seed, name, nats, "nats a byte"))
        self.bytes[subject.cell, name] = sum(p.numel() * p.element_size() for p in model.parameters())
        return percent


def run(seeds: Sequence[int], progress: Callable[[str], None]) -> Result:
    """The experiment on all sizes and seeds."""
    got = Gathered()
    for subject in subjects(seeds):
        progress(_one(got, subject))
    checks = [
        Check(rule, better(got.outcomes.gaps(SLIM, other)), say_gaps(got.outcomes.gaps(SLIM, other)))
        for other, rule in (
            (DROPPED, "two stages of slimming beat fewer experts, at equal weights and equal distillation"),
            (ONCE, "two stages beat one cut"),
            (SCRATCH, "they beat a small mixture distilled from a random start"),
            (CHANCE, "neurons ranked by the distillation loss beat neurons by chance"),
        )
    ]
    because = () if all(c.holds for c in checks) else _because(got)
    return Result(checks, got.figures, _points(got), {}, because)


def _one(got: Gathered, subject: Subject) -> str:
    whole = subject.model()
    whole.set_experts_implementation("eager")
    learned = subject.windows("learn")
    count = STEPS * BATCH // len(KINDS)
    rows = torch.cat(
        [learned[k][torch.linspace(0, len(learned[k]) - 1, min(count, len(learned[k]))).long()] for k in KINDS]
    )
    said = [f"whole {got.add(subject, WHOLE, whole):.1f}"]

    def slim(lr: float, **more: Any) -> Any:
        usual = {"width": SHARE, "steps": STEPS, "batch": BATCH, "sample": 48, "seed": subject.seed}
        return slimmoe(deepcopy(whole), rows, NoShelf(), lr=lr, **(usual | more)).model

    with tempfile.TemporaryDirectory() as folder:
        dropped, _ = smaller(subject, "reap", subject.text(Path(folder)), keep=SHARE, unseen="drop")
    ways: dict[str, Callable[[float], Any]] = {
        SLIM: lambda lr: slim(lr),
        ONCE: lambda lr: slim(lr, stages=1),
        DROPPED: lambda lr: distilled(deepcopy(dropped), whole, rows, lr, subject.seed),
        SCRATCH: lambda lr: distilled(_fresh(whole, subject.seed), whole, rows, lr, subject.seed),
        CHANCE: lambda lr: slim(lr, by="chance"),
    }
    for name, make in ways.items():
        found = []
        for lr in RATES:
            began = time.process_time()
            model = make(lr)
            if name == SLIM:
                got.seconds[subject.cell] = time.process_time() - began
            found.append((outcomes(model, subject.windows("val"))[1], lr, model))
        _, lr, model = min(found, key=lambda f: f[0])
        said.append(f"{name} {got.add(subject, name, model, f'lr {lr:g}'):.1f}")
    return f"{' '.join(subject.cell)}, seed {subject.seed}: " + ", ".join(said)


@torch.enable_grad()
def distilled(model: Any, teacher: Any, rows: torch.Tensor, lr: float, seed: int) -> Any:
    """As slimmoe distils, all steps in one stage."""
    model.set_experts_implementation("eager")
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    for step, ids in enumerate(batches(rows, BATCH, STEPS, seed)):
        for group in optimizer.param_groups:
            group["lr"] = lr * rate(step, STEPS)
        with torch.no_grad():
            taught = teacher(input_ids=ids, use_cache=False).logits
        loss = neurons.kl(model(input_ids=ids, use_cache=False).logits, taught)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model.requires_grad_(False)


def _fresh(whole: Any, seed: int) -> Any:
    """A mixture of the slimmed shape, its weights drawn anew."""
    config = deepcopy(whole.config)
    config.intermediate_size = int(config.intermediate_size * SHARE)
    torch.manual_seed(seed)
    return transformers.MixtralForCausalLM(config).float().eval()


def _points(got: Gathered) -> list[Point]:
    names = {WHOLE: "the whole mixture", SLIM: "experts/slimmoe", DROPPED: "experts/reap, distilled"}
    return [
        Point(
            method,
            f"mixtures/{', '.join(cell)}, distilled",
            got.bytes[cell, name],
            round(float(np.mean(got.outcomes.accuracies(cell, name))), 3),
            round(spread(got.outcomes.accuracies(cell, name)), 3),
            round(got.seconds[cell], 3) if name == SLIM else 0.0,
            trivial=name != SLIM,
        )
        for cell in got.outcomes.correct
        for name, method in names.items()
    ]


def _because(got: Gathered) -> list[str]:
    """What this run's figures say of the parts that did not hold."""
    rates = {
        name: float(np.mean([a for cell in got.outcomes.correct for a in got.outcomes.accuracies(cell, name)]))
        for name in (WHOLE, SLIM, ONCE, DROPPED, SCRATCH, CHANCE)
    }
    said = ", ".join(f"{name} {value:.1f}" for name, value in rates.items())
    slimmed = [rates[n] for n in (SLIM, ONCE, CHANCE)]
    return [
        f"Accuracy in the mean over cells and seeds: {said}.",
        f"The three ways to slim lie within {max(slimmed) - min(slimmed):.2f} points of one another, {rates[WHOLE] - rates[SLIM]:.2f} "
        f"below the whole and {rates[SLIM] - rates[DROPPED]:+.2f} from fewer experts, after {STEPS} steps of distillation.",
    ]
