"""P66, PreMoe: do the experts that a task's router logits name (TCESS) serve it alone, and does a query find its task?

The rule of the verdict (written from the paper's abstract before any number was known). A cell is a mixture of one size,
trained on code, prose and sums, at one number of experts that stay of 8 (4, or 2: as many as a token is given). The kinds
of text are the tasks; right is a byte of unseen text of a task that is the likeliest one, by a model that holds the experts
chosen for that task and no others. TCESS chooses among three settings (K_a = 1 with logits, all selected with logits, all
selected with probabilities) on other unseen text; pruning by chance among three draws; use and REAP, both measured on the
task's text as TCESS is, have nothing to choose. All keep equally many experts of each layer.

1. Use is specialised: with its own experts a task is served better than with those of either other task, and better than
   with the experts that TCESS chooses for all tasks together: each in the mean over the cells by more than two standard errors,
   and nowhere worse by more than two.
2. TCESS finds the critical experts: it beats chance likewise, and in the mean over the cells neither the task's own use nor its
   own REAP beats it by more than two standard errors.
3. With half of the experts 99 % of the whole mixture's accuracy is kept, with a quarter 74 %, in the mean of the seeds at each
   size (the abstract: 97.2 % on MATH500 with half, where the whole has about as much; 72.0 % with an eighth).
4. Queries of 64 bytes find their task in 95 of 100 cases, in the mean over sizes and seeds.
5. What is read of the file to serve a task is at most the chosen experts and 5 %, beside what all tasks share.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nett
from claims.mixture_bed import Recipe, bed
from claims.mixture_texts import KINDS
from claims.mixture_ways import SIZES, Subject, outcomes
from claims.outcomes import Cell, Outcomes, better, mean_gap, say_gaps, spread
from nett.core import torch_model
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point
from nett.experts.choosing import highest
from nett.experts.chosen import Chosen
from nett.experts.gathering import gather
from nett.experts.loader import loader
from nett.experts.opening import Opened, opened
from nett.experts.patterns import patterns_of
from nett.experts.task_scores import Measure, task_scores

PAPER = "P66"
CLAIM = (
    "Router logits on a task's text name a small set of experts that serves the task nearly as well as all, and a short query is "
    "enough to find the stored set."
)
METHODS = ["experts/premoe", "experts/retrieve"]

KEPT = {0.5: 99.0, 0.25: 74.0}  # share of the experts -> percent of the accuracy
MEASURES = (Measure(1), Measure(0), Measure(0, "probability"))
WHOLE, OURS, POOLED, USE, REAP, CHANCE = "whole mixture", "TCESS", "TCESS of all tasks", "use", "REAP", "chance"
OTHERS = ("TCESS of the next task", "TCESS of the task before")
BEDS = {**SIZES, "hidden 48": Recipe(hidden=48, width=96, layers=2, experts=8, steps=600, rows=12, text=300_000)}
LEARNED, QUERIES = 64, 40  # windows of a task; queries of a task
LENGTHS = (16, 64, 128)  # bytes of a query; the verdict looks at 64

Say = Callable[[str], None]
Kept = list[list[int]]  # of each layer


@dataclass
class Found:
    results: Outcomes = field(default_factory=Outcomes)
    retrieved: list[float] = field(default_factory=list)
    by_length: dict[int, list[list[float]]] = field(
        default_factory=dict
    )  # bytes of a query -> of each mixture, by task
    reads: list[tuple[int, int, int]] = field(default_factory=list)  # read, chosen experts, shared
    chosen: dict[Cell, list[str]] = field(default_factory=dict)
    overlap: dict[Cell, list[float]] = field(default_factory=dict)
    sizes: dict[Cell, int] = field(default_factory=dict)


def run(seeds: Sequence[int], progress: Say) -> Result:
    """The experiment; it needs nothing but nett, and trains its mixtures where they are not kept from before."""
    found, figures = Found(), list[Figure]()
    for subject in (Subject(n, s, bed(replace(r, seed=s))) for n, r in BEDS.items() for s in seeds):
        figures += _subject(subject, found)
        progress(
            f"{subject.size} seed {subject.seed}: queries {found.retrieved[-1]:.1f} % found; "
            + _progress(found, subject)
        )
    return Result(_checks(found), figures, _points(found), {}, _because(found))


def _subject(subject: Subject, found: Found) -> list[Figure]:
    learn = subject.windows("learn")
    seen = {kind: rows[:: max(1, len(rows) // LEARNED)][:LEARNED] for kind, rows in learn.items()}
    together = torch.cat(list(seen.values()))
    figures = []
    with opened(str(subject.folder), threads=1) as model:
        scores = [task_scores(model, list(seen.values()), m) for m in MEASURES]
        pooled = [task_scores(model, [together], m) for m in MEASURES]
        known = [gather(model, seen[kind], ["counts", "contribution"]) for kind in KINDS]
        judge = Judge(model, subject)
        base = {kind: judge.right([list(range(layer.count)) for layer in model.layers], kind) for kind in KINDS}
        for share in KEPT:
            ways = _ways(model, share, scores, pooled, known, subject.seed)
            count = len(ways[USE][0][0][0])
            cell = (subject.cell[0], f"{subject.size}, {count} of {model.layers[0].count} experts")
            by_way = found.results.correct.setdefault(cell, {}).setdefault(subject.seed, {})
            by_way[WHOLE] = base
            at: dict[str, list[int]] = {}
            for way, settings in ways.items():
                if way in OTHERS:  # what those tasks chose for themselves
                    shift = 1 + OTHERS.index(way)
                    best = [at[OURS][(t + shift) % len(KINDS)] for t in range(len(KINDS))]
                else:
                    best = [judge.best([s[t] for s in settings], kind) for t, kind in enumerate(KINDS)]
                at[way] = best
                by_way[way] = {
                    k: judge.right(settings[b][t], k) for t, (k, b) in enumerate(zip(KINDS, best, strict=True))
                }
                if way == OURS:
                    found.chosen.setdefault(cell, []).extend(_said(MEASURES[b]) for b in best)
                    mine = [settings[b][t] for t, b in enumerate(best)]
                    found.overlap.setdefault(cell, []).append(_overlap(mine))
            found.sizes[cell] = sum(
                t.nbytes for t in Chosen(model.skeleton.checkpoint, ways[USE][0][0]).tensors.values()
            )
            figures += [Figure(*cell, subject.seed, w, 100 * float(np.mean([a.mean() for a in r.values()])), "% right")
                        for w, r in by_way.items()]  # fmt: skip
    found.retrieved.append(_served(subject, seen, judge.test, found))
    figures.append(Figure(*cell, subject.seed, "queries of 64 bytes that find their task", found.retrieved[-1]))
    return figures


def _ways(model: Opened, share: float, scores: Any, pooled: Any, known: Any, seed: int) -> dict[str, list[list[Kept]]]:
    """For each way its settings, each with the experts that it keeps for each task."""
    layers, tasks = model.layers, range(len(KINDS))
    count = round(share * layers[0].count)
    stored = [patterns_of(KINDS, s, m, share, "") for s, m in zip(scores, MEASURES, strict=True)]
    alike = [patterns_of(["all"], s, m, share, "") for s, m in zip(pooled, MEASURES, strict=True)]
    own = [[p.kept(k, layers) for k in KINDS] for p in stored]
    draws = [np.random.default_rng([seed, d]) for d in range(len(MEASURES))]

    def by(name: str) -> list[Kept]:
        return [[highest(layer, known[t][i][name], count) for i, layer in enumerate(layers)] for t in tasks]

    return {
        OURS: own,
        OTHERS[0]: [[kept[(t + 1) % len(KINDS)] for t in tasks] for kept in own],
        OTHERS[1]: [[kept[(t + 2) % len(KINDS)] for t in tasks] for kept in own],
        POOLED: [[p.kept("all", layers)] * len(KINDS) for p in alike],
        USE: [by("counts")],
        REAP: [by("contribution")],
        CHANCE: [
            [[sorted(d.permutation(layer.count)[:count].tolist()) for layer in layers] for _ in tasks] for d in draws
        ],
    }


class Judge:
    """A mixture with some of its experts, on a task's unseen text; the same experts are judged once."""

    def __init__(self, model: Opened, subject: Subject) -> None:
        self._model = model
        self._text = {split: subject.windows(split) for split in ("val", "test")}
        self._known: dict[tuple[Any, ...], tuple[np.ndarray, float]] = {}
        self.test = self._text["test"]

    def _of(self, kept: Kept, kind: str, split: str) -> tuple[np.ndarray, float]:
        key = (split, kind, *map(tuple, kept))
        if key not in self._known:
            few = Chosen(self._model.skeleton.checkpoint, kept, self._model.layers)
            made = torch_model.model(few).float().eval()
            made.set_experts_implementation("eager")
            right, nats = outcomes(made, {kind: self._text[split][kind]})
            self._known[key] = right[kind], nats
        return self._known[key]

    def right(self, kept: Kept, kind: str) -> np.ndarray:
        return self._of(kept, kind, "test")[0]

    def best(self, kept: Sequence[Kept], kind: str) -> int:
        """The setting with the lowest loss on a task's other unseen text."""
        return int(np.argmin([self._of(k, kind, "val")[1] for k in kept])) if len(kept) > 1 else 0


def _said(measure: Measure) -> str:
    return f"{'K_a = 1' if measure.top else 'all selected'}, {measure.score}"


def _overlap(kept: Sequence[Kept]) -> float:
    """Of a task's experts, the share that another task keeps too; the mean over pairs."""
    pairs = [(a, b) for i, a in enumerate(kept) for b in kept[i + 1 :]]
    return float(np.mean([len(set(x) & set(y)) / len(x) for a, b in pairs for x, y in zip(a, b, strict=True)]))


def _served(subject: Subject, seen: Mapping[str, Any], test: Mapping[str, Any], found: Found) -> float:
    """Through the files and the loader: percent of queries that find their task; notes what is read."""
    with tempfile.TemporaryDirectory() as place:
        tasks = []
        for kind in KINDS:
            file = Path(place) / f"{kind}.txt"
            file.write_bytes(b"".join(bytes(row.tolist()) for row in seen[kind]))
            tasks.append(f"{kind}={file}")
        out = Path(place) / "patterns"
        nett.experts.premoe([str(subject.folder)], task=tasks, samples=LEARNED, length=128, out=out, threads=1)
        with _counted() as read, loader(out, task=KINDS[0]) as loaded:
            experts = sum(
                layer.nbytes // layer.count * len(held) for layer, held in zip(loaded.layers, loaded.held, strict=True)
            )
            shared = loaded.checkpoint.nbytes - sum(layer.nbytes for layer in loaded.layers)
            found.reads.append((sum(read), experts, shared))
            for length in LENGTHS:
                found.by_length.setdefault(length, []).append(
                    [
                        100
                        * float(
                            np.mean([next(iter(loaded.distances(q))) == kind for q in _queries(test[kind], length)])
                        )
                        for kind in KINDS
                    ]
                )
        return float(np.mean(found.by_length[64][-1]))


def _queries(rows: Any, length: int) -> list[str]:
    """The first bytes of some windows."""
    chosen = rows[:: max(1, len(rows) // QUERIES)][:QUERIES, :length]
    return [bytes(row.tolist()).decode(errors="replace") for row in chosen]


@contextmanager
def _counted() -> Iterator[list[int]]:
    """Bytes of weights that the system is asked for meanwhile, call by call."""
    asked: list[int] = []
    really = os.preadv

    def counted(fd: int, buffers: Any, offset: int) -> int:
        asked.append(got := really(fd, buffers, offset))
        return got

    os.preadv = counted  # type: ignore[assignment]
    try:
        yield asked
    finally:
        os.preadv = really


def _progress(found: Found, subject: Subject) -> str:
    said = []
    for cell, seeds in found.results.correct.items():
        if subject.seed in seeds and cell[1].startswith(subject.size):
            values = ", ".join(
                f"{w} {100 * np.mean([a.mean() for a in r.values()]):.1f}" for w, r in seeds[subject.seed].items()
            )
            said.append(f"{cell[1]}: {values}")
    return "; ".join(said)


def _checks(found: Found) -> list[Check]:
    results = found.results
    special = {w: results.gaps(OURS, w) for w in (*OTHERS, POOLED)}
    chance, rivals = results.gaps(OURS, CHANCE), {w: results.gaps(OURS, w) for w in (USE, REAP)}
    kept = {c: results.kept(c, WHOLE, OURS) for c in results.correct}
    limits = {c: KEPT[0.5] if "4 of 8" in c[1] else KEPT[0.25] for c in kept}
    ratio = max((read - shared) / experts for read, experts, shared in found.reads)
    return [
        Check(
            "a task's own experts serve it better than those of other tasks and of all together (mean, two standard errors; "
            "nowhere worse)",
            all(better(g) for g in special.values()),
            "; ".join(f"{w}: {say_gaps(g)}" for w, g in special.items()),
        ),
        Check("TCESS beats chance (mean, two standard errors; nowhere worse)", better(chance), say_gaps(chance)),
        Check(
            "neither use nor REAP of the task beats TCESS (mean, two standard errors)",
            not any(mean_gap(g).below for g in rivals.values()),
            "; ".join(f"{w}: {say_gaps(g)}" for w, g in rivals.items()),
        ),
        Check(
            "half of the experts keep 99 % of the accuracy, a quarter 74 %",
            all(kept[c] >= limits[c] for c in kept),
            "; ".join(f"{c[1]}: {kept[c]:.1f} % (of {limits[c]:g})" for c in kept),
        ),
        Check(
            "queries of 64 bytes find their task in 95 of 100 cases",
            float(np.mean(found.retrieved)) >= 95,
            f"mean {np.mean(found.retrieved):.1f} %, least {min(found.retrieved):.1f} %",
        ),
        Check("at most the chosen experts and 5 % are read", ratio <= 1.05, f"at most {ratio:.4f} of the chosen experts' bytes"),
    ]  # fmt: skip


def _points(found: Found) -> list[Point]:
    names = {
        OURS: "experts/premoe",
        USE: "use of the task",
        REAP: "REAP of the task",
        CHANCE: "chance",
        POOLED: "TCESS, one set for all",
    }
    return [
        Point(name, f"tasks/{' '.join(cell)}", found.sizes[cell], float(np.mean(found.results.accuracies(cell, way))),
              spread(found.results.accuracies(cell, way)), 0.0, trivial=way in (USE, CHANCE))
        for cell in found.results.correct for way, name in names.items()
    ]  # fmt: skip


def _because(found: Found) -> list[str]:
    said = []
    if np.mean(found.retrieved) < 95:
        rates = {n: np.mean(r, axis=0) for n, r in found.by_length.items()}
        each = "; ".join(
            f"{n} bytes {np.mean(r):.0f} % ({', '.join(f'{k} {v:.0f}' for k, v in zip(KINDS, r, strict=True))})"
            for n, r in rates.items()
        )
        said.append(f"Queries that find their task, mean over sizes and seeds: {each}.")
    for cell, limit in ((c, KEPT[0.5] if "4 of 8" in c[1] else KEPT[0.25]) for c in found.results.correct):
        own = {
            k: 100
            * float(np.mean([s[OURS][k].mean() / s[WHOLE][k].mean() for s in found.results.correct[cell].values()]))
            for k in KINDS
        }
        if found.results.kept(cell, WHOLE, OURS) < limit:
            kept = ", ".join(f"{k} {v:.1f} %" for k, v in own.items())
            said.append(f"{cell[1]}: of the whole mixture's accuracy a task keeps {kept}.")
    for cell in found.results.correct:
        settings = ", ".join(f"{s} {found.chosen[cell].count(s)}" for s in sorted(set(found.chosen[cell])))
        said.append(
            f"{cell[1]}: two tasks share {100 * np.mean(found.overlap[cell]):.0f} % of the experts that TCESS keeps; settings chosen "
            f"(tasks and seeds): {settings}."
        )
    return said
