"""P21, HESSO and HESSO-CRIC: does pruning units while training leave a better small network than pruning after it?

One budget of steps for all ways, one learning rate a bed (that of the full network). Ways: HESSO; HESSO-CRIC; one-shot
magnitude (half the steps dense, units of the smallest norm cut, half the steps again); group lasso (the same, with a
penalty on the units' norms in the first half). Each is tuned on validation examples at 70 % of the units, with the
first seed: whether units are ranked over all layers or in each, and for group lasso two penalties as well.

The rule of the verdict (written from the paper's abstract before any number was known). A cell is a bed at one size;
answers are digits, or next characters. "Better" is: in the mean over the cells by more than two standard errors, and at
no cell worse by more than two.

1. In every run exactly as many units are zero as were asked for, none of the layers is empty, and the network without
   them gives the same outputs to 1e-5.
2. At 50, 70 and 90 % of the units together, HESSO is better than one-shot magnitude.
3. And better than group lasso.
4. At 90 %, where a single ranking misjudges most, HESSO-CRIC is better than HESSO.
5. At 50 % HESSO loses less than one point to the full network, at every cell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

import nett
from claims.outcomes import Cell, Outcomes, better, mean_gap, say_gaps, spread
from claims.pruning_beds import LLAMA, STEPS, Bed, all_beds
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point
from nett.core.structure import removed, slices_of, structure_of
from nett.weights.training.choice import lowest, wanted

PAPER = "P21"
CLAIM = (
    "Ranking units while a network trains and fading the least useful ones out leaves, after one training and with nearly "
    "no tuning, a smaller network that is better than pruning it afterwards; corrective cycles protect units that one "
    "ranking misjudges."
)
METHODS = ["weights/hesso", "weights/hesso_cric"]

SPARSITIES, TUNED_AT = (0.5, 0.7, 0.9), 0.7
FULL, HESSO, CRIC, MAGNITUDE, LASSO = "full network", "HESSO", "HESSO-CRIC", "one-shot magnitude", "group lasso"
Say = Callable[[str], None]
_SAID: dict[str, Say] = {}  # how to report, where the forked processes find it
Settings = dict[str, Any]
SETTINGS: dict[str, list[Settings]] = {
    HESSO: [{"periods": 5, "scope": s} for s in ("global", "layer")],
    CRIC: [{"sampling": 4, "scope": s} for s in ("global", "layer")],
    MAGNITUDE: [{"each": False}, {"each": True}],
    LASSO: [{"penalty": p, "each": e} for p in (1e-4, 1e-3) for e in (False, True)],
}


def train(bed: Bed, network: Any, seed: int, steps: int, *, by: Any = None, penalty: float = 0.0) -> Any:
    """Some steps with one rise and fall of the learning rate; ``by`` is the optimizer, AdamW without one."""
    optimizer: Any = torch.optim.AdamW(network.parameters(), lr=bed.rate) if by is None else by
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, bed.rate, total_steps=steps)
    slices = slices_of(network, structure_of(network, bed.example)) if penalty else []
    network.train()
    for x, y in bed.batches(seed, steps):
        optimizer.zero_grad()
        loss = bed.loss(network, x, y)
        whole = loss
        for one in slices:
            squares = torch.stack([p.rows(p.parameter).square().sum(1) for p in one.parts]).sum(0)
            whole = whole + penalty * one.numbers**0.5 * (squares + 1e-12).sqrt().sum()
        whole.backward()
        optimizer.step() if by is None else optimizer.step(loss=loss)
        schedule.step()
    return network


class Trained:
    """Networks of one bed and seed, by way and sparsity; what several of them start from is trained once."""

    def __init__(self, bed: Bed, seed: int) -> None:
        self.bed, self.seed = bed, seed
        self.first: dict[float, Any] = {}  # penalty -> the network after half the steps
        self.worst = 0.0  # difference of outputs
        self.exact = True  # numbers of zero units

    def full(self) -> Any:
        return train(self.bed, self.bed.make(self.seed), self.seed, self.bed.steps)

    def small(self, way: str, sparsity: float, settings: Settings) -> Any:
        """The smaller network."""
        return self._fading(way, sparsity, settings) if way in (HESSO, CRIC) else self._cut(sparsity, **settings)

    def _fading(self, way: str, sparsity: float, settings: Settings) -> Any:
        bed, network = self.bed, self.bed.make(self.seed)
        tenth = bed.steps // 10
        if way == HESSO:
            by = nett.weights.hesso(
                network, bed.example, sparsity=sparsity, start=tenth, steps=4 * tenth, lr=bed.rate, **settings
            )
        else:
            by = nett.weights.hesso_cric(
                network, bed.example, sparsity=sparsity, start=tenth, steps=2 * tenth, cycles=4, lr=bed.rate, **settings
            )
        train(bed, network, self.seed, bed.steps, by=by)
        small = by.smaller()
        self.worst = max(self.worst, float((bed.outputs(network) - bed.outputs(small)).abs().max()))
        alive = all(layer["zero"] < layer["units"] for layer in by.layers)
        self.exact = self.exact and alive and by.progress["zero"] == by.progress["asked"]
        return small

    def _cut(self, sparsity: float, each: bool, penalty: float = 0.0) -> Any:
        bed, half = self.bed, self.bed.steps // 2
        if penalty not in self.first:
            self.first[penalty] = train(bed, bed.make(self.seed), self.seed, half, penalty=penalty)
        network = self.first[penalty]
        structure = structure_of(network, bed.example)
        slices = slices_of(network, structure)
        none = [torch.zeros(s.size, dtype=torch.bool) for s in slices]
        gone = lowest(
            [s.norms() for s in slices], none, wanted([s.size for s in slices], sparsity, each=each, divisible=1)
        )
        kept = {s.name: (~g).nonzero()[:, 0].numpy() for s, g in zip(slices, gone, strict=True)}
        return train(bed, removed(network, structure.groups, kept), self.seed + 1000, half)


def size_of(bed: Bed, network: Any) -> tuple[int, float]:
    """Parameters, and FLOPs of one input (torch's count)."""
    from torch.utils.flop_counter import FlopCounterMode

    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        bed.logits(network, bed.splits["val"][0][:1])
    return sum(p.numel() for p in network.parameters()), float(counter.get_total_flops())


@dataclass
class Found:
    """What came out on one bed at one size."""

    outcomes: dict[float, Outcomes] = field(default_factory=lambda: {s: Outcomes() for s in SPARSITIES})
    figures: list[Figure] = field(default_factory=list)
    frontier: list[Point] = field(default_factory=list)
    worst: float = 0.0
    exact: bool = True


def run(seeds: Sequence[int], progress: Say) -> Result:
    """All beds at once."""
    skipped: dict[str, str] = {}
    count = len(all_beds(skipped))
    _SAID["progress"] = progress
    with ProcessPoolExecutor(max(count, 1), get_context("fork")) as pool:  # forked, so that these files are known there
        tasks = [pool.submit(one_bed, i, seeds) for i in range(count)]
        parts = [t.result() for t in tasks]
    outcomes = {s: Outcomes({c: r for p in parts for c, r in p.outcomes[s].correct.items()}) for s in SPARSITIES}
    figures = [f for p in parts for f in p.figures]
    frontier = [f for p in parts for f in p.frontier]
    checks = _checks(outcomes, parts)
    return Result(
        checks, figures, frontier, skipped, [] if all(c.holds for c in checks) else _because(outcomes, figures)
    )


def one_bed(number: int, seeds: Sequence[int]) -> Found:
    """Tune, train and judge on one bed."""
    torch.set_num_threads(1)
    bed, found, progress = all_beds({})[number], Found(), _SAID["progress"]
    chosen = tune(bed, min(seeds), progress)
    for seed in seeds:
        trained = one_seed(bed, seed, chosen, found.outcomes, found.figures)
        found.worst, found.exact = max(found.worst, trained.worst), found.exact and trained.exact
        cell = (bed.name, bed.size)
        said = "; ".join(
            f"{s:.0%} " + ", ".join(f"{w} {o.accuracies(cell, w)[-1]:.2f}" for w in (FULL, *SETTINGS))
            for s, o in found.outcomes.items()
        )
        progress(f"{bed.name}, {bed.size}, seed {seed}: {said}")
    found.frontier += points(bed, found.outcomes, found.figures)
    return found


def tune(bed: Bed, seed: int, progress: Say) -> dict[str, Settings]:
    """Way -> the settings that are best on validation examples."""
    trained, found = Trained(bed, seed), dict[str, Settings]()
    for way, settings in SETTINGS.items():
        rights = [float(bed.right(trained.small(way, TUNED_AT, s), "val").mean()) for s in settings]
        found[way] = settings[int(np.argmax(rights))]
    progress(f"{bed.name}, {bed.size}: tuned to {found}")
    return found


def one_seed(
    bed: Bed, seed: int, chosen: dict[str, Settings], outcomes: dict[float, Outcomes], figures: list[Figure]
) -> Trained:
    """Train and judge every way at every sparsity."""
    trained, cell = Trained(bed, seed), (bed.name, bed.size)
    full = trained.full()
    right = {"answers": bed.right(full, "test")}
    parameters, flops = size_of(bed, full)
    figures.append(Figure(*cell, seed, FULL, 100 * float(right["answers"].mean())))
    for sparsity, outcome in outcomes.items():
        found = outcome.correct.setdefault(cell, {}).setdefault(seed, {FULL: right})
        for way in SETTINGS:
            began = time.process_time()
            small = trained.small(way, sparsity, chosen[way])
            seconds = time.process_time() - began
            found[way] = {"answers": bed.right(small, "test")}
            what = f"{way}, {sparsity:.0%} of the units"
            said = str(chosen[way])
            figures.append(Figure(*cell, seed, what, 100 * float(found[way]["answers"].mean()), note=said))
            fewer, less = size_of(bed, small)
            figures.append(Figure(*cell, seed, f"{what}: parameters", 100 * fewer / parameters))
            figures.append(Figure(*cell, seed, f"{what}: FLOPs", 100 * less / flops))
            figures.append(Figure(*cell, seed, f"{what}: CPU time", seconds, "s"))
    figures.append(Figure(*cell, seed, "largest difference of outputs, cut and zeroed", trained.worst, "1"))
    return trained


def points(bed: Bed, outcomes: dict[float, Outcomes], figures: Sequence[Figure]) -> list[Point]:
    """What each way came to at 70 %, in float32 bytes."""
    cell, found = (bed.name, bed.size), list[Point]()
    whole = sum(p.numel() for p in bed.make(0).parameters())
    asset = f"network/{bed.name}, {bed.size}"
    rights = outcomes[TUNED_AT].accuracies(cell, FULL)
    found.append(
        Point("keep it as it is", asset, 4.0 * whole, float(np.mean(rights)), spread(rights), 0.0, trivial=True)
    )
    for way in SETTINGS:
        rights = outcomes[TUNED_AT].accuracies(cell, way)
        what = f"{way}, {TUNED_AT:.0%} of the units"

        def mean(more: str, what: str = what) -> float:
            return float(np.mean([f.value for f in figures if (f.bed, f.size, f.what) == (*cell, what + more)]))

        method = {HESSO: METHODS[0], CRIC: METHODS[1]}.get(way, way)
        size = 4.0 * whole * mean(": parameters") / 100
        found.append(Point(method, asset, size, float(np.mean(rights)), spread(rights), mean(": CPU time")))
    return found


def _all(outcomes: dict[float, Outcomes], a: str, b: str) -> dict[Cell, Any]:
    """Gaps of every sparsity, each a size of its own."""
    return {(bed, f"{size} {s:.0%}"): g for s, o in outcomes.items() for (bed, size), g in o.gaps(a, b).items()}


def _checks(outcomes: dict[float, Outcomes], runs: Sequence[Found]) -> list[Check]:
    worst = max(r.worst for r in runs)
    magnitude, lasso = _all(outcomes, HESSO, MAGNITUDE), _all(outcomes, HESSO, LASSO)
    cric, loss = outcomes[0.9].gaps(CRIC, HESSO), outcomes[0.5].gaps(FULL, HESSO)
    return [
        Check(
            "exactly as many units are zero as asked, no layer is empty, and the cut network answers as the zeroed one (1e-5)",
            worst < 1e-5 and all(r.exact for r in runs),
            f"largest difference of an output {worst:.1e} over {len(runs)} beds and sizes",
        ),
        Check("HESSO is better than one-shot magnitude with the same steps", better(magnitude), say_gaps(magnitude)),
        Check("HESSO is better than group lasso with the same steps", better(lasso), say_gaps(lasso)),
        Check("HESSO-CRIC is better than HESSO at 90 % of the units", better(cric), say_gaps(cric)),
        Check(
            "at 50 % of the units HESSO loses less than one point to the full network, at every cell",
            all(g.mean < 1 for g in loss.values()),
            say_gaps(loss),
        ),
    ]


def _because(outcomes: dict[float, Outcomes], figures: Sequence[Figure]) -> list[str]:
    """The causes, in the figures of this run; only what they bear out is said."""
    said = []
    for bed in dict.fromkeys(f.bed for f in figures):
        kept = {}
        for way in SETTINGS:
            what = f"{way}, 90% of the units: parameters"
            kept[way] = float(np.mean([f.value for f in figures if f.bed == bed and f.what == what]))
        said.append(
            f"Equal units are not equal parameters: on {bed}, 90 % of the units leave "
            + ", ".join(f"{way} {share:.0f} %" for way, share in kept.items())
            + " of the parameters."
        )
    search = outcomes[0.5].gaps(CRIC, HESSO)
    if mean_gap(search).below:
        said.append(
            f"The search of HESSO-CRIC rests the weights, which costs it training: {mean_gap(search)} points against HESSO "
            "already at 50 %."
        )
    if LLAMA in {f.bed for f in figures}:
        said.append(
            f"These networks have some ten thousand weights and train for {STEPS} steps; those of the paper are larger."
        )
    return said
