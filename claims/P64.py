"""P64, LoRAPrune: do the gradients of low-rank updates choose better what to prune than size and chance do?

Heads and channels are cut gradually while low-rank updates are trained; the ways differ only in what ranks the units:
the updates' gradients (ours), the true gradients of all weights (LLM-Pruner's Taylor criterion, which must store them),
size, chance. Same steps, batches, learning rate, masks and numbers of units, on two models and at two ratios. The learning
rate is chosen once a model on validation text, for the way of chance at 20 %, which favours the baselines.

The rule of the verdict (written from the paper's abstract before any number was known). A cell is a model at one ratio.
Differences are in hundredths of a nat a token on test text, window by window. "Better" is: in the mean over the cells by more
than two standard errors, and at no cell worse by more than two.

1. and 2. LoRAPrune is better than pruning by size, and than pruning by chance, at equal ratio and training.
3. It is not worse than the true gradient by more than two standard errors, in the mean over the cells.
4. At 20 % it is better than size and than chance, at each model by more than two standard errors (this project's bar).
5. At 50 % it loses less than half of what chance loses to the model before pruning, in nats, at each model.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np

import nett
from claims import stories
from claims.outcomes import Cell, better, mean_gap, say_gaps, spread
from nett.core.claims import Check, Figure, Result
from nett.core.errors import Refused
from nett.core.standing import Point

PAPER = "P64"
CLAIM = (
    "Structured pruning guided by the weights and gradients of low-rank updates keeps more of a language model than "
    "pruning by size or by chance at the same training, and as much as the true gradients do without storing them."
)
METHODS = ["weights/loraprune"]

RATIOS = (0.2, 0.5)
WAYS = ("lora", "taylor", "magnitude", "random")
NAMES = {"lora": "LoRAPrune", "taylor": "true gradient", "magnitude": "size", "random": "chance"}
RATES = (3e-3, 1e-2)
TRAINING = {"steps": 50, "batch": 4, "every": 3}

Say = Callable[[str], None]
Surprise = dict[Cell, dict[str, list[np.ndarray]]]


def run(seeds: Sequence[int], progress: Say) -> Result:
    """All ways on both models, seed by seed."""
    why = stories.lacking()
    if why:
        raise Refused(f"both models and their texts lie with the assets, and {why}")
    jobs = [functools.partial(_on, make, seeds, progress) for make in (stories.stories, stories.plays)]
    found: Surprise = {}
    figures: list[Figure] = []
    points: list[Point] = []
    for rows, numbers, more in stories.side_by_side(jobs):
        found |= rows
        figures += numbers
        points += more
    checks = _checks(found)
    return Result(checks, figures, points, {}, () if all(c.holds for c in checks) else _because(found, figures))


def _on(
    make: Callable[[], stories.Reader], seeds: Sequence[int], progress: Say
) -> tuple[Surprise, list[Figure], list[Point]]:
    """All ways on one model."""
    bed = make()
    found: Surprise = {}
    rate = _rate(bed, progress)
    whole = bed.surprise(bed.model, "test")
    figures = [
        Figure(bed.name, bed.size, 0, "learning rate", rate, ""),
        Figure(bed.name, bed.size, 0, "perplexity before", float(np.exp(whole.mean())), ""),
    ]
    points = [_before(bed, whole)]
    for ratio in RATIOS:
        cell = (bed.name, f"{bed.size}, {ratio:.0%}")
        rows = found.setdefault(cell, {"before": [whole] * len(seeds)})
        made = {way: _points_of(bed, cell, way, ratio, rate, seeds, rows, figures) for way in WAYS}
        progress(f"{' '.join(cell)}: {_line(rows)}")
        points.append(made["lora"])
    return found, figures, points


def _rate(bed: stories.Reader, progress: Say) -> float:
    """The learning rate under which chance does best at 20 % on validation text."""
    scores = [float(bed.surprise(_pruned(bed, "random", 0.2, rate, 0).model, "val").mean()) for rate in RATES]
    progress(f"{bed.name}: " + ", ".join(f"rate {r:g} {s:.3f}" for r, s in zip(RATES, scores, strict=True)))
    return RATES[int(np.argmin(scores))]


def _pruned(bed: stories.Reader, way: str, ratio: float, rate: float, seed: int) -> nett.weights.protocol.Shrunk:
    return nett.weights.loraprune(
        bed.fresh(), bed.windows["train"], ratio=ratio, by=way, lr=rate, seed=seed, **TRAINING
    )


def _points_of(
    bed: stories.Reader,
    cell: Cell,
    way: str,
    ratio: float,
    rate: float,
    seeds: Sequence[int],
    rows: dict[str, list[np.ndarray]],
    figures: list[Figure],
) -> Point:
    """One way with each seed; what it gives on test text goes into ``rows``."""
    seconds, size = [], 0.0
    for seed in seeds:
        began = time.process_time()
        made = _pruned(bed, way, ratio, rate, seed)
        seconds.append(time.process_time() - began)
        after = bed.surprise(made.model, "test")
        rows.setdefault(way, []).append(after)
        size = 4.0 * made.figures["parameters after"]
        figures.append(Figure(*cell, seed, f"perplexity, {NAMES[way]}", float(np.exp(after.mean())), ""))
        if seed == seeds[0] and way == "lora":
            kept = {kind: next(iter(blocks.values())) for kind, blocks in made.figures["units kept"].items()}
            text = ", ".join(f"{n} of {made.figures['units before'][kind]} {kind}" for kind, n in kept.items())
            figures.append(
                Figure(*cell, seed, "parameters kept", 100 * size / 4 / made.figures["parameters before"], "%", text)
            )
            figures.append(
                Figure(*cell, seed, "gradients stored by LoRAPrune", made.figures["weights of updates trained"], "")
            )
            stored = sum(p.numel() for p in bed.model.get_decoder().layers.parameters() if p.dim() == 2)
            figures.append(Figure(*cell, seed, "gradients stored besides by the true gradient", stored, ""))
    nats = [float(r.mean()) for r in rows[way]]
    return Point(
        "weights/loraprune",
        f"language models/{bed.name}, {bed.size}",
        size,
        -round(float(np.mean(nats)), 4),
        round(spread(nats), 4),
        round(float(np.mean(seconds)), 2),
        False,
    )


def _before(bed: stories.Reader, whole: np.ndarray) -> Point:
    size = 4.0 * sum(p.numel() for p in bed.model.parameters())
    return Point(
        "the model before",
        f"language models/{bed.name}, {bed.size}",
        size,
        -round(float(whole.mean()), 4),
        0.0,
        0.0,
        True,
    )


def _line(rows: dict[str, list[np.ndarray]]) -> str:
    """Perplexities, mean and spread over the seeds."""
    said = []
    for name, each in rows.items():
        values = [float(np.exp(r.mean())) for r in each]
        said.append(f"{NAMES.get(name, name)} {np.mean(values):.2f} ± {spread(values):.2f}")
    return ", ".join(said)


def _checks(found: Surprise) -> list[Check]:
    gaps = {other: {cell: stories.gap(rows["lora"], rows[other]) for cell, rows in found.items()} for other in WAYS[1:]}
    low = {other: {c: g for c, g in gaps[other].items() if c[1].endswith("20%")} for other in ("magnitude", "random")}
    true = mean_gap(gaps["taylor"])
    lost = {
        cell: (_loss(rows, "lora"), _loss(rows, "random")) for cell, rows in found.items() if cell[1].endswith("50%")
    }
    return [
        Check("LoRAPrune is better than pruning by size", better(gaps["magnitude"]), say_gaps(gaps["magnitude"])),
        Check("LoRAPrune is better than pruning by chance", better(gaps["random"]), say_gaps(gaps["random"])),
        Check("LoRAPrune is not worse than the true gradient, in the mean", not true.below, say_gaps(gaps["taylor"])),
        Check(
            "at 20 % LoRAPrune is better than size and than chance, at each model by more than two standard errors",
            all(g.above for each in low.values() for g in each.values()),
            "; ".join(f"{NAMES[other]}: {say_gaps(each)}" for other, each in low.items()),
        ),
        Check(
            "at 50 % LoRAPrune loses less than half of what chance loses, at each model",
            all(2 * ours < theirs for ours, theirs in lost.values()),
            "; ".join(f"{' '.join(cell)}: {ours:.3f} and {theirs:.3f} nats" for cell, (ours, theirs) in lost.items()),
        ),
    ]


def _loss(rows: dict[str, list[np.ndarray]], way: str) -> float:
    """Nats a token lost to the model before pruning, mean over the seeds."""
    return float(np.mean([a.mean() - b.mean() for a, b in zip(rows[way], rows["before"], strict=True)]))


def _because(found: Surprise, figures: Sequence[Figure]) -> list[str]:
    """The causes, in the figures of this run."""
    said = []
    for cell, rows in found.items():
        lost = {way: _loss(rows, way) for way in WAYS}
        said.append(
            f"{' '.join(cell)}: nats lost after training: "
            + ", ".join(f"{NAMES[way]} {lost[way]:+.3f}" for way in WAYS)
        )
    largest = max(f.value for f in figures if f.what.startswith("gradients stored besides"))
    said.append(f"The models' matrices have at most {int(largest):,} weights, those of the paper start at 7 billion.")
    return said
