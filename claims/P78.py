"""P78, atomic feature mimicking: do principal components of what layers give compress CTR models better than SVD of weights?

All cuts of one model keep the same number of directions in the same layers, so that their parameters are equal to one:
AFM's from what the layers give on the training examples, SVD's from the weights alone; both with their factors evened out
(a first run, with AFM's as the paper writes them and SVD's evened out, had AFM behind SVD after the epoch for that
reason). The small model is the same architecture with narrower layers and embeddings, of no fewer parameters, trained
from scratch as the large one was. All get one more epoch, at the better of two rates on validation examples; so does the
large one.

The rule of the verdict (written from the paper's abstract before it was run). A cell is an architecture at one size.
"Better" is: in the mean over the cells by more than two standard errors, and at no cell worse by more than two.

1. Before the epoch AFM has a better AUC than SVD, at 3 and at 5 times fewer parameters.
2. After it AFM has a better AUC than SVD, at 3 and at 5 times fewer.
3. After it AFM has a better AUC than the small model, at 3 and at 5 times fewer.
4. After it AFM at 3 times fewer has a better AUC than the large model before its epoch and after it.
5. A batch of 1,024 takes AFM's model at 5 times fewer less time than the large one, at every cell.
6. On the linear layers of stories260K at 1/2 and 3/4 of their numbers, AFM's loss is smaller than SVD's by more than two
   standard errors over paired windows.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import hypot, sqrt
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

import nett
from claims import ctr, stories
from claims.outcomes import Cell, Gap, better, mean_gap, say_gaps
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point

PAPER = "P78"
CLAIM = (
    "Thin layers in the principal directions of what a trained recommender's layers give keep more of its AUC than SVD "
    "of its weights or a small model, and after an epoch reach more than the model itself at 3 to 5 times fewer parameters."
)
METHODS = ["weights/afm"]

SIZES = {"dim 12, MLP 96": (12, (96, 96)), "dim 24, MLP 192": (24, (192, 192))}
KINDS: dict[str, type[nn.Module]] = {"DeepFM": ctr.DeepFM, "DCN": ctr.DCN}
FEWER = (3, 5)
RATES = (1e-3, 2e-4)
LARGE, SMALL, AFM, SVD = "large", "small", "AFM", "SVD"
Say = Callable[[str], None]


def at(way: str, fewer: int, after: bool) -> str:
    name = way if way == LARGE else f"{way} at 1/{fewer}"
    return f"{name}, one epoch more" if after else name


@dataclass
class Found:
    """Test scores: cell -> seed -> way -> scores; and the clicks."""

    scores: dict[Cell, dict[int, dict[str, np.ndarray]]] = field(default_factory=dict)
    clicks: dict[Cell, dict[int, torch.Tensor]] = field(default_factory=dict)

    def aucs(self, cell: Cell, way: str) -> list[float]:
        return [ctr.auc(s[way], self.clicks[cell][seed]) for seed, s in self.scores[cell].items()]

    def gaps(self, one: str, other: str) -> dict[Cell, Gap]:
        """Mean difference; the error joins its spread over the seeds and that of the test examples."""
        found = {}
        for cell, by_seed in self.scores.items():
            values = np.subtract(self.aucs(cell, one), self.aucs(cell, other))
            errors = [ctr.auc_gap_error(s[one], s[other], self.clicks[cell][seed]) for seed, s in by_seed.items()]
            count = len(values)
            spread = float(np.std(values, ddof=1)) / sqrt(count) if count > 1 else 0.0
            # seeds have test examples of their own, all of one pool
            found[cell] = Gap(float(np.mean(values)), hypot(spread, float(np.mean(errors)) / sqrt(count)))
        return found


def run(seeds: Sequence[int], progress: Say) -> Result:
    skipped: dict[str, str] = {}
    figures, points, found = list[Figure](), list[Point](), Found()
    faster: dict[Cell, list[float]] = {}
    for kind in KINDS:
        for size in SIZES:
            cell = (ctr.NAME, f"{kind}, {size}")
            for seed in seeds:
                data = ctr.clicks(seed, skipped)
                if data is not None:
                    faster.setdefault(cell, []).append(_one(kind, size, seed, data, found, figures))
                    progress(f"{cell}, seed {seed}: {_line(found, cell)}, time ratio {faster[cell][-1]:.2f}")
    for cell, by_seed in found.scores.items():
        for way in next(iter(by_seed.values())):
            for seed, value in zip(by_seed, found.aucs(cell, way), strict=True):
                figures.append(Figure(*cell, seed, f"AUC, {way}", value))
        points += _points(found, cell, figures)
    checks = _checks(found, faster) if found.scores else []
    why = stories.lacking()
    if why is not None:
        skipped["stories260K"] = why
    else:
        checks.append(_language(stories.stories(), seeds, figures, progress))
    because = () if all(c.holds for c in checks) else _because(found, figures)
    return Result(checks, figures, points, skipped, because)


def _one(kind: str, size: str, seed: int, data: ctr.Clicks, found: Found, figures: list[Figure]) -> float:
    """One model, all its cuts. Returns the time of the smallest cut as a share of the large model's."""
    cell = (ctr.NAME, f"{kind}, {size}")
    dim, widths = SIZES[size]
    torch.manual_seed(1000 * seed + dim)
    large = ctr.trained(KINDS[kind](data.sizes, dim, widths), data, seed)
    scores: dict[str, np.ndarray] = {}
    models: dict[str, nn.Module] = {LARGE: large}

    def note(way: str, fewer: int, model: nn.Module) -> None:
        more, rate = _one_epoch(model, data, seed)
        for after, one in ((False, model), (True, more)):
            scores[at(way, fewer, after)] = ctr.scores(one, data.test)
            models[at(way, fewer, after)] = one
        figures.append(Figure(*cell, seed, f"rate of {at(way, fewer, True)}", rate, ""))
        figures.append(Figure(*cell, seed, f"parameters, {at(way, fewer, False)}", ctr.numbers(model), "numbers"))

    note(LARGE, 1, large)
    batches = list(data.train[0].split(4096))
    for fewer in FEWER:
        share, mimic = _share_for(large, batches, ctr.numbers(large) / fewer)
        note(AFM, fewer, mimic.model)
        note(SVD, fewer, by_weights(large, mimic))
        note(SMALL, fewer, ctr.trained(_small(kind, data, dim, widths, ctr.numbers(mimic.model)), data, seed))
        error = max(layer.error for layer in mimic.layers)
        figures.append(Figure(*cell, seed, f"share of a layer's numbers at 1/{fewer}", 100 * share))
        figures.append(Figure(*cell, seed, f"largest share of variance left out at 1/{fewer}", 100 * error))
    found.scores.setdefault(cell, {})[seed] = scores
    found.clicks.setdefault(cell, {})[seed] = data.test[1]
    rows = data.test[0][:1024]
    taken = {n: _milliseconds(models[n], rows) for n in (LARGE, at(AFM, 5, False), at(SMALL, 5, False))}
    for name, value in taken.items():
        figures.append(Figure(*cell, seed, f"time of 1,024 examples, {name}", value, "ms"))
    return taken[at(AFM, 5, False)] / taken[LARGE]


def _share_for(model: nn.Module, batches: Sequence[torch.Tensor], most: float) -> tuple[float, Any]:
    """The largest share of every layer's numbers with which the whole model has at most so many."""
    low, high, best = 0.0, 1.0, None
    for _ in range(7):
        share = (low + high) / 2
        made = nett.weights.mimicked(model, batches[:1], share=share)
        low, high = (share, high) if ctr.numbers(made.model) <= most else (low, share)
    best = nett.weights.mimicked(model, batches, share=low)
    return low, best


def by_weights(model: nn.Module, mimic: Any) -> nn.Module:
    """The model with the same layers cut to the same ranks by the singular vectors of their weights."""
    made = copy.deepcopy(model)
    for layer in mimic.layers:
        if layer.rank is None:
            continue
        parent, _, child = layer.name.rpartition(".")
        thin: Any = copy.deepcopy(mimic.model.get_submodule(layer.name))
        old: Any = model.get_submodule(layer.name)
        table = old.weight.detach().double()
        u, s, v = torch.linalg.svd(table, full_matrices=False)
        root = s[: layer.rank].sqrt()
        with torch.no_grad():
            if layer.kind == "linear":
                thin[0].weight.copy_(root[:, None] * v[: layer.rank])
                thin[1].weight.copy_(u[:, : layer.rank] * root)
                thin[1].bias.copy_(old.bias if old.bias is not None else torch.zeros(len(table)))
            else:
                thin[0].weight.copy_(u[:, : layer.rank] * root)
                thin[1].weight.copy_((root[:, None] * v[: layer.rank]).T)
                thin[1].bias.zero_()
        setattr(made.get_submodule(parent), child, thin)
    return made.eval()


def _small(kind: str, data: ctr.Clicks, dim: int, widths: tuple[int, ...], least: int) -> nn.Module:
    """Narrower by one factor all over, the narrowest with at least so many parameters."""
    narrow: nn.Module | None = None
    for own in range(1, dim + 1):
        scale = own / dim
        narrow = KINDS[kind](data.sizes, own, tuple(max(2, round(w * scale)) for w in widths))
        if ctr.numbers(narrow) >= least:
            break
    assert narrow is not None
    return narrow


def _one_epoch(model: nn.Module, data: ctr.Clicks, seed: int) -> tuple[nn.Module, float]:
    tried = []
    for rate in RATES:
        more = copy.deepcopy(model)
        ctr.epoch(more, data, rate, torch.Generator().manual_seed(seed))
        tried.append((ctr.auc(ctr.scores(more, data.val), data.val[1]), rate, more))
    _, rate, more = max(tried, key=lambda one: one[0])
    return more, rate


def _milliseconds(model: nn.Module, rows: torch.Tensor) -> float:
    """Median of 21 calls."""
    found = []
    with torch.no_grad():
        for _ in range(24):
            began = time.perf_counter()
            model(rows)
            found.append(1000 * (time.perf_counter() - began))
    return median(found[3:])


def _line(found: Found, cell: Cell) -> str:
    ways = [at(LARGE, 1, False), at(LARGE, 1, True)]
    ways += [at(w, f, a) for f in FEWER for w in (AFM, SVD, SMALL) for a in (False, True)]
    return ", ".join(f"{way} {found.aucs(cell, way)[-1]:.2f}" for way in ways)


def _checks(found: Found, faster: dict[Cell, list[float]]) -> list[Check]:
    checks = []
    rivals = ((SVD, False), (SVD, True), (SMALL, True))
    for rival, after in rivals:
        for fewer in FEWER:
            gaps = found.gaps(at(AFM, fewer, after), at(rival, fewer, after))
            when = "after one epoch more" if after else "as cut"
            checks.append(
                Check(f"AFM's AUC is better than that of {rival} at 1/{fewer}, {when}", better(gaps), say_gaps(gaps))
            )
    for after in (False, True):
        gaps = found.gaps(at(AFM, 3, True), at(LARGE, 1, after))
        checks.append(
            Check(f"AFM at 1/3 after one epoch is better than the {at(LARGE, 1, after)}", better(gaps), say_gaps(gaps))
        )
    said = "; ".join(f"{bed}, {size} {median(ratios):.2f}" for (bed, size), ratios in faster.items())
    holds = all(median(ratios) < 1 for ratios in faster.values())
    checks.append(Check("AFM at 1/5 takes less time than the large model for 1,024 examples", holds, f"ratio {said}"))
    return checks


def _points(found: Found, cell: Cell, figures: Sequence[Figure]) -> list[Point]:
    bed, size = cell
    points = []
    ways = [(LARGE, 1, True)] + [(w, f, False) for f in FEWER for w in (AFM, SVD, SMALL)]
    for way, fewer, trivial in ways:
        values = found.aucs(cell, at(way, fewer, way != LARGE))
        held = [
            f.value for f in figures if (f.bed, f.size, f.what) == (bed, size, f"parameters, {at(way, fewer, False)}")
        ]
        name = {AFM: "weights/afm", SVD: "SVD of the weights", SMALL: "small model", LARGE: "kept as it is"}[way]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        points.append(
            Point(
                name,
                f"recommender/{bed}, {size}",
                4 * held[0],
                round(float(np.mean(values)), 3),
                round(spread, 3),
                0.0,
                trivial or way != AFM,
            )
        )
    return points


def _language(bed: stories.Reader, seeds: Sequence[int], figures: list[Figure], progress: Say) -> Check:
    original = bed.surprise(bed.model, "test")
    for seed, value in stories.shares(original, seeds).items():
        figures.append(Figure(bed.name, bed.size, seed, "perplexity, as it is", float(np.exp(value)), ""))
    said, holds = [], True
    for share in (0.75, 0.5):
        mimic = nett.weights.mimicked(
            bed.model, list(bed.windows["train"].split(16)), share=share, embeddings=False, skip=["lm_head"]
        )
        plain = by_weights(bed.model, mimic)
        losses = {AFM: bed.surprise(mimic.model, "test"), SVD: bed.surprise(plain, "test")}
        for way, values in losses.items():
            for seed, value in stories.shares(values, seeds).items():
                what = f"perplexity, {way} at {share} of the linear layers' numbers"
                figures.append(Figure(bed.name, bed.size, seed, what, float(np.exp(value)), ""))
        mean, error = stories.change(losses[AFM], losses[SVD])
        holds = holds and mean < -2 * error
        said.append(f"{share}: {mean:+.3f} ± {error:.3f} of {losses[SVD].mean():.3f}")
        progress(f"stories260K at {said[-1]} nats")
    figure = "; ".join(said) + f" nats a token; as it is {original.mean():.3f}"
    return Check("on stories260K AFM's loss is smaller than that of SVD at equal numbers", holds, figure)


def _because(found: Found, figures: Sequence[Figure]) -> list[str]:
    """The causes, in the figures of this run."""
    said = []
    if found.scores:
        lost = {f: mean_gap(found.gaps(at(AFM, f, False), at(LARGE, 1, False))).mean for f in FEWER}
        left = {f: mean_gap(found.gaps(at(AFM, f, True), at(LARGE, 1, False))).mean for f in FEWER}
        text = ", ".join(f"{lost[f]:+.2f} and {left[f]:+.2f} at 1/{f}" for f in FEWER)
        said.append(f"AUC points against the large model as it is, AFM as cut and after an epoch: {text}.")
        more = mean_gap(found.gaps(at(LARGE, 1, True), at(LARGE, 1, False)))
        said.append(
            f"One more epoch changes the large model itself by {more} points: it was stopped where it was best."
        )
        gap = mean_gap(found.gaps(at(SMALL, 5, False), at(LARGE, 1, False)))
        said.append(
            f"The small model at 1/5 is {gap} points from the large one: with 100,836 ratings there is little that the "
            "large one can do and a small one cannot."
        )
    return said
