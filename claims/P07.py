"""P07, FoldGPT: do gates that are trained together find better blocks to remove than scores of blocks one by one do?

Blocks are removed from two models, then what is left is cured: low-rank updates trained on next tokens and on the
original's last layer. The ways differ only in what ranks the blocks: trained gates (ours), ShortGPT's block influence, size
of the weights, place (the last ones), chance. Same steps, batches and learning rate of the cure, chosen once a model on
validation text, for chance at 20 %, which favours the baselines. Ways that choose the same blocks share one cure.

The rule of the verdict (written from the paper's abstract before any number was known). A cell is a model with so many blocks
removed. Differences are in hundredths of a nat a token on test text, window by window. "Better" is: in the mean over the
cells by more than two standard errors, and at no cell worse by more than two.

1. After the cure, gates are better than block influence.
2. and 3. After the cure, gates are better than size, and than chance.
4. With about a fifth of the blocks removed, gates are better than size and than chance, at each model by more than two standard
   errors (this project's bar).
5. Curing wins back at least half of the nats that removing blocks by gates had cost, at each cell.
6. With the distance to the original's last layer, the cure is better than without.
7. Sharing: at equal bytes, a fifth removed and the rest sharing in pairs is better than removing as many blocks more.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import nett
from claims import stories
from claims.outcomes import Cell, better, say_gaps, spread
from nett.core.claims import Check, Figure, Result
from nett.core.errors import Refused
from nett.core.standing import Point

PAPER = "P07"
CLAIM = (
    "Blocks chosen by gates that are trained together can be removed at less loss than those chosen one by one, "
    "neighbours can then share weights, and a short cure with the original's last layer repairs most of what was lost."
)
METHODS = ["weights/foldgpt"]

WAYS = ("gates", "influence", "magnitude", "last", "random")
FIXED = ("influence", "magnitude", "last")  # they choose the same blocks whatever the seed
NAMES = {
    "gates": "gates",
    "influence": "block influence",
    "magnitude": "size",
    "last": "the last ones",
    "random": "chance",
}
UNCURED, PLAIN, SHARED, FEWER = (
    "gates, not cured",
    "gates, cured without tail",
    "gates, shared in pairs",
    "gates, as few bytes",
)
REMOVED = {5: (1, 2), 8: (2, 4)}  # blocks -> how many of them go
RATES = (3e-3, 1e-2)
CURE = {"cure_steps": 40, "batch": 4}
GATES = {"gate_steps": 80}

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
    figures: list[Figure] = []
    points: list[Point] = []
    blocks = int(bed.model.config.num_hidden_layers)
    rate = _rate(bed, 1 / 5, progress)
    whole = bed.surprise(bed.model, "test")
    figures.append(Figure(bed.name, bed.size, 0, "learning rate of the cure", rate, ""))
    figures.append(Figure(bed.name, bed.size, 0, "perplexity before", float(np.exp(whole.mean())), ""))
    size = 4.0 * sum(p.numel() for p in bed.model.parameters())
    asset = f"language models/{bed.name}, {bed.size}"
    points.append(Point("the model before", asset, size, -round(float(whole.mean()), 4), 0.0, 0.0, True))
    for gone in REMOVED[blocks]:
        cell = (bed.name, f"{bed.size}, {gone} removed")
        rows = found.setdefault(cell, {"before": [whole] * len(seeds)})
        points.append(_cell(bed, cell, gone, rate, seeds, rows, figures))
        if gone == REMOVED[blocks][0]:
            _sharing(bed, cell, gone, rate, seeds, rows, figures)
        for name, each in rows.items():
            what = f"perplexity, {NAMES.get(name, name)}"
            figures += [Figure(*cell, s, what, float(np.exp(r.mean())), "") for s, r in zip(seeds, each, strict=True)]
        progress(f"{' '.join(cell)}: {_line(rows)}")
    return found, figures, points


def _folded(bed: stories.Reader, **how: Any) -> nett.weights.protocol.Shrunk:
    return nett.weights.foldgpt(bed.fresh(), bed.windows["train"], **({"batch": CURE["batch"]} | GATES | how))


def _rate(bed: stories.Reader, ratio: float, progress: Say) -> float:
    """The learning rate under which chance does best on validation text."""
    models = [_folded(bed, ratio=ratio, by="random", lr=rate, **CURE).model for rate in RATES]
    scores = [float(bed.surprise(model, "val").mean()) for model in models]
    progress(f"{bed.name}: " + ", ".join(f"rate {r:g} {s:.3f}" for r, s in zip(RATES, scores, strict=True)))
    return RATES[int(np.argmin(scores))]


def _cell(
    bed: stories.Reader,
    cell: Cell,
    gone: int,
    rate: float,
    seeds: Sequence[int],
    rows: dict[str, list[np.ndarray]],
    figures: list[Figure],
) -> Point:
    """All ways at one number of blocks; what they give on test text goes into ``rows``."""
    ratio = gone / int(bed.model.config.num_hidden_layers)
    seconds, size, cuts = [], 0.0, dict[str, Any]()
    for seed in seeds:
        known: dict[tuple[int, ...], np.ndarray] = {}
        for way in WAYS:
            began = time.process_time()
            if way not in cuts:
                cuts[way] = _folded(bed, ratio=ratio, by=way, seed=seed, cure_steps=0)
            cut = cuts[way] if way in FIXED else cuts.pop(way)
            removed = tuple(cut.figures["blocks removed"])
            figures.append(Figure(*cell, seed, f"blocks removed by {NAMES[way]}", len(removed), "", str(list(removed))))
            if way == "gates":
                rows.setdefault(UNCURED, []).append(bed.surprise(cut.model, "test"))
            if removed not in known:
                cured = _cured(bed, removed, rate, seed)
                known[removed] = bed.surprise(cured, "test")
            rows.setdefault(way, []).append(known[removed])
            if way == "gates":
                seconds.append(time.process_time() - began)
                size = 4.0 * sum(p.numel() for p in cut.model.parameters())
                plain = _cured(bed, removed, rate, seed, tail=0.0)
                rows.setdefault(PLAIN, []).append(bed.surprise(plain, "test"))
    nats = [float(r.mean()) for r in rows["gates"]]
    return Point(
        "weights/foldgpt",
        f"language models/{bed.name}, {bed.size}",
        size,
        -round(float(np.mean(nats)), 4),
        round(spread(nats), 4),
        round(float(np.mean(seconds)), 2),
        False,
    )


def _cured(bed: stories.Reader, removed: Sequence[int], rate: float, seed: int, *, share: int = 1, **how: Any) -> Any:
    """The method's cure of the model without these blocks."""
    from nett.weights.cure import cured
    from nett.weights.fold_sharing import share as shared
    from nett.weights.stack import cut as without
    from nett.weights.stack import stack_of

    teacher = bed.fresh()
    stack = stack_of(teacher)
    model, _ = without(teacher, stack, [i for i in range(len(stack)) if i not in removed])
    if share > 1:
        shared(stack_of(model), share)
    asked: dict[str, Any] = {
        "by": "lora",
        "steps": CURE["cure_steps"],
        "batch": CURE["batch"],
        "peak": rate,
        "tail": 1.0,
        "on": "hidden",
        "rank": 8,
    }
    cured(model, stack_of(model), teacher, bed.windows["train"], seed=seed, **(asked | how))
    return model


def _sharing(
    bed: stories.Reader,
    cell: Cell,
    gone: int,
    rate: float,
    seeds: Sequence[int],
    rows: dict[str, list[np.ndarray]],
    figures: Sequence[Figure],
) -> None:
    """A fifth removed and the rest in pairs, against so many blocks removed that as few matrices are left."""
    blocks = int(bed.model.config.num_hidden_layers)
    left = -(-(blocks - gone) // 2)
    for seed in seeds:
        noted = {f.seed: f.note for f in figures if (f.bed, f.size) == cell and f.what == "blocks removed by gates"}
        shared = _cured(bed, json.loads(noted[seed]), rate, seed, share=2)
        fewer = _folded(bed, ratio=(blocks - left) / blocks, seed=seed, lr=rate, **CURE)
        rows.setdefault(SHARED, []).append(bed.surprise(shared, "test"))
        rows.setdefault(FEWER, []).append(bed.surprise(fewer.model, "test"))


def _line(rows: dict[str, list[np.ndarray]]) -> str:
    """Perplexities, mean and spread over the seeds."""
    said = []
    for name, each in rows.items():
        values = [float(np.exp(r.mean())) for r in each]
        said.append(f"{NAMES.get(name, name)} {np.mean(values):.2f} ± {spread(values):.2f}")
    return ", ".join(said)


def _checks(found: Surprise) -> list[Check]:
    gaps = {
        other: {cell: stories.gap(rows["gates"], rows[other]) for cell, rows in found.items()} for other in WAYS[1:]
    }
    few = {cell for cell, rows in found.items() if SHARED in rows}
    low = {other: {c: g for c, g in gaps[other].items() if c in few} for other in ("magnitude", "random")}
    back = {cell: (_loss(rows, UNCURED), _loss(rows, "gates")) for cell, rows in found.items()}
    tail = {cell: stories.gap(rows["gates"], rows[PLAIN]) for cell, rows in found.items()}
    share = {cell: stories.gap(found[cell][SHARED], found[cell][FEWER]) for cell in found if cell in few}
    checks = [
        Check(f"after the cure, gates are better than {NAMES[other]}", better(gaps[other]), say_gaps(gaps[other]))
        for other in ("influence", "magnitude", "random")
    ]
    return [
        *checks,
        Check(
            "with about a fifth removed, gates are better than size and than chance, at each model by two standard errors",
            all(g.above for each in low.values() for g in each.values()),
            "; ".join(f"{NAMES[other]}: {say_gaps(each)}" for other, each in low.items()),
        ),
        Check(
            "the cure wins back at least half of what removal by gates had cost, at each cell",
            all(2 * after <= before for before, after in back.values()),
            "; ".join(f"{' '.join(c)}: {a:.3f} nats lost, {b:.3f} after the cure" for c, (a, b) in back.items()),
        ),
        Check("the cure is better with the original's last layer than without", better(tail), say_gaps(tail)),
        Check("at equal bytes, sharing in pairs is better than removing more blocks", better(share), say_gaps(share)),
    ]


def _loss(rows: dict[str, list[np.ndarray]], way: str) -> float:
    """Nats a token lost to the model before, mean over the seeds."""
    return float(np.mean([a.mean() - b.mean() for a, b in zip(rows[way], rows["before"], strict=True)]))


def _because(found: Surprise, figures: Sequence[Figure]) -> list[str]:
    """The causes, in the figures of this run."""
    said = []
    for cell, rows in found.items():
        lost = {way: _loss(rows, way) for way in WAYS}
        chosen = {
            way: [f.note for f in figures if (f.bed, f.size) == cell and f.what == f"blocks removed by {NAMES[way]}"]
            for way in WAYS
        }
        said.append(
            f"{' '.join(cell)}: nats lost after the cure: "
            + ", ".join(f"{NAMES[way]} {lost[way]:+.3f}" for way in WAYS)
            + "; blocks that went, seed by seed: "
            + ", ".join(f"{NAMES[way]} {' '.join(dict.fromkeys(chosen[way]))}" for way in WAYS[:3])
        )
    return said
