"""P24, gradual magnitude pruning: is a large sparse network better than a small dense one that costs as much?

LSTM language models of characters. The large one is pruned while it trains, along the cubic schedule, from a tenth of
the steps over six tenths of them; the small dense ones are as wide as fits the same number of non-zero weights, and as
fits the same bytes, where the sparse one pays a bit for every weight of its pruned matrices. All take the same batches in
as many steps. The learning rate of the sparse and of the dense networks is tuned each over three values, on validation
text, with the first seed, at 87.5 % and for the dense network of as many non-zero weights.

The rule of the verdict (written from the paper's abstract before any number was known). A cell is a width of the large
network at one sparsity; figures are percent of perplexity (hundredths of a nat a character). "Better" is: in the mean over
the cells by more than two standard errors, and at no cell worse by more than two.

1. In every run exactly the share asked for is zero.
2. At equal non-zero weights, large sparse is better than small dense.
3. At equal bytes, bitmap and all, large sparse is better than small dense.
4. At 50 % the large network loses less than 2 % of perplexity to the same network unpruned.
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
from claims import char_models
from claims.char_models import losses, numbers, prunable_numbers, stored, trained, width_for
from claims.outcomes import Cell, Outcomes, better, mean_gap, say_gaps, spread
from claims.pruning_beds import characters
from nett.core.claims import Check, Figure, Result
from nett.core.errors import Refused
from nett.core.standing import Point

PAPER = "P24"
CLAIM = "At the same storage, a large network pruned gradually while it trains is better than a small dense one."
METHODS = ["weights/gradual"]

BED = "Shakespeare LSTM"
WIDTHS, SPARSITIES, TUNED_AT = (64, 128), (0.5, 0.75, 0.875, 0.9), 0.875
RATES = (1.6e-2, 3.2e-2, 6.4e-2)
LARGE, SPARSE, EQUAL_COUNT, EQUAL_BYTES = (
    "large, unpruned",
    "large sparse",
    "small dense of equal non-zeros",
    "small dense of equal bytes",
)
Say = Callable[[str], None]


def run(seeds: Sequence[int], progress: Say) -> Result:
    """Tune, then train and judge, each network of a width and seed in a process of its own."""
    if characters() is None:
        raise Refused("needs the text of the assets", hint="Set NETT_ASSETS.")
    with ProcessPoolExecutor(6, get_context("fork")) as pool:  # forked, so that these files are known there
        asked = [(w, way, r) for w in WIDTHS for way in (SPARSE, EQUAL_COUNT) for r in RATES]
        tried = dict(
            zip(asked, pool.map(tried_rate, *zip(*[(*a, min(seeds)) for a in asked], strict=True)), strict=True)
        )
        rates = {w: {way: _best(tried, w, way) for way in (SPARSE, EQUAL_COUNT)} for w in WIDTHS}
        progress(f"tuned to {rates}; validation losses {tried}")
        parts = {(w, s): pool.submit(one_seed, w, s, rates[w]) for w in WIDTHS for s in seeds}
        found = {}
        for (width, seed), part in parts.items():
            found[width, seed] = part.result()
            progress(f"width {width}, seed {seed}: {found[width, seed].said()}")
    outcomes = {s: Outcomes() for s in SPARSITIES}
    figures = list[Figure]()
    for (width, seed), one in found.items():
        cell = (BED, f"width {width}")
        for sparsity, row in one.rows.items():
            outcomes[sparsity].correct.setdefault(cell, {})[seed] = dict(row)
            for way, losses_of in row.items():
                what = way if way == LARGE else f"{way} at {sparsity:.1%}"
                if way != LARGE or sparsity == SPARSITIES[0]:
                    figures.append(Figure(*cell, seed, f"{what}: loss", -float(losses_of["text"].mean()), "nats"))
            for way, hidden in _small(width, sparsity).items():
                figures.append(Figure(*cell, seed, f"{way} at {sparsity:.1%}: width", hidden, "units"))
    frontier = [p for w in WIDTHS for p in _points(w, outcomes, [found[w, s].seconds for s in seeds])]
    checks = _checks(outcomes, all(one.exact for one in found.values()))
    because = [] if all(c.holds for c in checks) else _because(outcomes)
    return Result(checks, figures, frontier, {}, because)


def _best(tried: dict[Any, float], width: int, way: str) -> float:
    losses_of = {rate: loss for (w, one, rate), loss in tried.items() if (w, one) == (width, way)}
    return float(min(losses_of, key=lambda rate: losses_of[rate]))


def _text() -> tuple[Any, Any, Any]:
    """Text to train, tune and judge on: the last tenths of it are held out."""
    torch.set_num_threads(1)
    text = characters()
    assert text is not None
    n = len(text)
    return text[: int(0.8 * n)], text[int(0.8 * n) : int(0.9 * n)][:20000], text[int(0.9 * n) :][:40000]


VOCABULARY = 65  # characters of tinyshakespeare


def _small(width: int, sparsity: float) -> dict[str, int]:
    """The widths of the dense networks that cost what the large one does."""
    count, size = stored(width, VOCABULARY, sparsity)
    return {
        EQUAL_COUNT: width_for(count, VOCABULARY, lambda h: numbers(h, VOCABULARY)),
        EQUAL_BYTES: width_for(size, VOCABULARY, lambda h: stored(h, VOCABULARY, 0.0)[1]),
    }


def _sparse(text: Any, width: int, sparsity: float, seed: int, rate: float) -> tuple[Any, Any]:
    tenth = char_models.STEPS // 10

    def prune(model: Any, optimizer: Any) -> Any:
        return nett.weights.gradual(
            model, optimizer, sparsity=sparsity, start=tenth, steps=6 * tenth, every=tenth // 10
        )

    return trained(text, width, VOCABULARY, seed, rate, prune=prune)


def tried_rate(width: int, way: str, rate: float, seed: int) -> float:
    """The validation loss with a learning rate."""
    train, val, _ = _text()
    if way == SPARSE:
        return float(losses(_sparse(train, width, TUNED_AT, seed, rate)[0], val).mean())
    return float(losses(trained(train, _small(width, TUNED_AT)[way], VOCABULARY, seed, rate)[0], val).mean())


@dataclass
class Seed:
    """What came out at one width with one seed: per sparsity and way minus the losses, and CPU seconds."""

    rows: dict[float, dict[str, dict[str, Any]]] = field(default_factory=dict)
    seconds: dict[tuple[float, str], float] = field(default_factory=dict)
    exact: bool = True

    def said(self) -> str:
        return "; ".join(
            f"{s:.1%} " + ", ".join(f"{way} {-found['text'].mean():.3f}" for way, found in row.items())
            for s, row in self.rows.items()
        )


def one_seed(width: int, seed: int, rates: dict[str, float]) -> Seed:
    """Train and judge all networks beside one large one."""
    train, _, test = _text()
    found = Seed()

    def dense(hidden: int) -> dict[str, Any]:
        return {"text": -losses(trained(train, hidden, VOCABULARY, seed, rates[EQUAL_COUNT])[0], test)}

    whole = dense(width)
    for sparsity in SPARSITIES:
        row = found.rows.setdefault(sparsity, {LARGE: whole})
        began = time.process_time()
        model, pruning = _sparse(train, width, sparsity, seed, rates[SPARSE])
        found.seconds[sparsity, SPARSE] = time.process_time() - began
        row[SPARSE] = {"text": -losses(model, test)}
        weights = pruning.weights.values()
        asked = sum(int(sparsity * p.numel() + 0.5) for p in weights)
        seen = sum(int((p == 0).sum()) for p in weights)
        total = prunable_numbers(width, VOCABULARY)
        found.exact = found.exact and asked == seen == pruning.progress["zero"] and total == pruning.progress["weights"]
        for way, hidden in _small(width, sparsity).items():
            began = time.process_time()
            row[way] = dense(hidden)
            found.seconds[sparsity, way] = time.process_time() - began
    return found


def _points(width: int, outcomes: dict[float, Outcomes], seconds: Sequence[dict[Any, float]]) -> list[Point]:
    """Each network in the bytes that it takes; quality is minus the loss in hundredths of a nat."""
    cell, made = (BED, f"width {width}"), list[Point]()
    asset = f"network/{cell[0]}, {cell[1]}"

    def point(method: str, way: str, sparsity: float, size: float, *, trivial: bool = False) -> Point:
        values = outcomes[sparsity].accuracies(cell, way)
        took = float(np.mean([row.get((sparsity, way), 0.0) for row in seconds]))
        return Point(method, asset, size, float(np.mean(values)), spread(values), took, trivial=trivial)

    made.append(point("keep it as it is", LARGE, SPARSITIES[0], stored(width, VOCABULARY, 0.0)[1], trivial=True))
    for sparsity in SPARSITIES:
        made.append(point(METHODS[0], SPARSE, sparsity, stored(width, VOCABULARY, sparsity)[1]))
        hidden = _small(width, sparsity)[EQUAL_BYTES]
        made.append(point("train a small one", EQUAL_BYTES, sparsity, stored(hidden, VOCABULARY, 0.0)[1], trivial=True))
    return made


def _all(outcomes: dict[float, Outcomes], a: str, b: str) -> dict[Cell, Any]:
    """Gaps of every sparsity, each a size of its own."""
    return {(bed, f"{size} {s:.1%}"): g for s, o in outcomes.items() for (bed, size), g in o.gaps(a, b).items()}


def _checks(outcomes: dict[float, Outcomes], exact: bool) -> list[Check]:
    count, size = _all(outcomes, SPARSE, EQUAL_COUNT), _all(outcomes, SPARSE, EQUAL_BYTES)
    loss = outcomes[0.5].gaps(LARGE, SPARSE)
    return [
        Check("in every run exactly the share asked for is zero", exact, "counted in the trained weights"),
        Check("at equal non-zero weights, large sparse is better than small dense", better(count), say_gaps(count)),
        Check("at equal bytes with the bitmap, large sparse is better than small dense", better(size), say_gaps(size)),
        Check(
            "at 50 % the large network loses less than 2 % of perplexity to itself unpruned",
            all(g.mean < 2 for g in loss.values()),
            say_gaps(loss),
        ),
    ]


def _because(outcomes: dict[float, Outcomes]) -> list[str]:
    """The causes, in the figures of this run; only what they bear out is said."""
    said = []
    count, size = (mean_gap(_all(outcomes, SPARSE, other)) for other in (EQUAL_COUNT, EQUAL_BYTES))
    if size.mean < count.mean:
        said.append(
            f"The bitmap costs {count.mean - size.mean:.1f} % of perplexity: the dense network that it pays for is wider."
        )
    lost = {s: mean_gap(o.gaps(LARGE, SPARSE)).mean for s, o in outcomes.items()}
    grown = ", ".join(f"{v:.1f} % at {s:.1%}" for s, v in lost.items())
    said.append(f"Pruning costs the large network {grown} of perplexity after {char_models.STEPS} steps of training.")
    return said
