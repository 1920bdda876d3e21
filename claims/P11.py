"""P11, Cache-Craft: can chunks of retrieved text be used again wherever they stand, with a small share computed anew?

Beds are the two language models of claims.cache_beds on stories: stories260K and one of 1.6 million weights that is trained
here, once. A seed has its own corpus of 100 chunks of 48 tokens; each of its 500 questions draws 4 of them by Zipf's law
(exponent 1) in any order and asks with the 16 tokens that follow one of them in its story. Every tenth is judged, on the 16
tokens after those, with all ways on the store as it is then; work is that of all questions.
The store begins empty, so that chunks that are met for the first time are computed and count. Alpha is the largest of a
sweep at which, by the plans of 60 other questions, no more than a fifth of the token-layers is computed (chunks that are new
are not in those plans). CacheBlend is ours (second layer, largest deviation), and so are the others; all see the same store.

The rule of the verdict (from the paper's abstract and the bars of its issue; written after 80 questions on stories260K had
been looked at while the method was built; a run of 200 questions was given up after one seed, since chunks that are new were
11 % of its work). Token-layers are of whole prompts, questions and
new chunks counted. Errors are paired, question by question; "less" is by more than two standard errors.

1. Cache-Craft computes at most 25 % of the token-layers of full recomputation, at every cell.
2. It computes at most 49 % of those of prefix caching, at every cell.
3. Quality is maintained: the mean KL to full recomputation is at most a tenth of the KL of prompts without their chunks, and
   the likelihood of the text that follows is no worse than with full recomputation by more than two standard errors, at
   every cell.
4. It has less KL than CacheBlend at equal token-layers, CacheBlend's look at the first layer counted, in the mean over cells.
5. It has less KL than CacheBlend with as many tokens computed again, its look for nothing, in the mean over cells.
6. It has less KL than as many first tokens of each chunk, than as many by chance, and than full reuse, in the mean over cells.

Seconds to the first token are those of benchmarks/cache: on models this small they are Python's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import hypot, sqrt
from typing import Any

import numpy as np

import nett
from claims import stories
from claims.cache_beds import CacheBed, _stories, grouped, trained
from claims.chunk_beds import Compared, Corpus, Query, affordable, at_equal_work, compared, fill
from claims.outcomes import Cell, Gap, mean_gap, say_gaps, spread
from nett.cache.chunk_judging import following
from nett.cache.chunk_store import chunk_store
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point

PAPER = "P11"
CLAIM = (
    "Stored chunks, moved to where they stand now and with few tokens computed again, answer as full recomputation does for a "
    "quarter of its work and half of prefix caching's."
)
METHODS = ["cache/cache_craft"]

Say = Callable[[str], None]
CHUNK, QUESTION, GOLD = 48, 16, 16
QUERIES, EVERY, TUNING, BUDGET = 500, 10, 60, 0.2
TRAIN = 0.75  # of the stories, which a bed may have been trained on; the corpus is of the others
OURS, BLEND, WORK = "Cache-Craft", "CacheBlend, as many tokens", "CacheBlend, as many token-layers"
FIRST, CHANCE, REUSE, PREFIX, NONE = "first tokens", "tokens by chance", "full reuse", "prefix caching", "no chunks"
LEAST, PREFIXES, TENTH = 0.25, 0.49, 0.1


@dataclass
class Found:
    """Of every cell and way, seed by seed: what was compared, question by question; token-layers, ours and the full ones."""

    compared: dict[Cell, dict[str, list[list[Compared]]]] = field(default_factory=dict)
    work: dict[Cell, dict[str, list[float]]] = field(default_factory=dict)
    whole: dict[Cell, list[float]] = field(default_factory=dict)
    nll: dict[Cell, list[np.ndarray]] = field(default_factory=dict)  # of full recomputation
    alpha: dict[Cell, list[float]] = field(default_factory=dict)

    def kl(self, cell: Cell, way: str) -> list[np.ndarray]:
        return [np.array([c.kl for c in rows]) for rows in self.compared[cell][way]]

    def share(self, cell: Cell, way: str) -> float:
        return sum(self.work[cell][way]) / sum(self.whole[cell])

    def gap(self, cell: Cell, theirs: Sequence[np.ndarray], ours: Sequence[np.ndarray]) -> Gap:
        """``theirs`` minus ``ours`` in thousandths of a nat: above 0 is: ours is less. Seeds have corpora of their own."""
        rows = [1000 * (a - b) for a, b in zip(theirs, ours, strict=True)]
        means = [float(r.mean()) for r in rows]
        within = sqrt(sum(float(r.var(ddof=1)) / len(r) for r in rows)) / len(rows)
        return Gap(float(np.mean(means)), hypot(spread(means) / sqrt(len(means)), within))

    def against(self, way: str) -> dict[Cell, Gap]:
        return {c: self.gap(c, self.kl(c, way), self.kl(c, OURS)) for c in self.compared}


def run(seeds: Sequence[int], progress: Say) -> Result:
    why = stories.lacking()
    if why is not None:
        return Result([], [], [], {"stories260K": why, "stories, MHA": why})
    models = [grouped(0, 1), trained(0, 1)]
    return experiment([(seed, bed) for seed in seeds for bed in models], progress, QUERIES, TUNING)


def experiment(beds: Any, progress: Say, queries: int, tuning: int) -> Result:
    """``beds``: pairs of a seed and a bed."""
    found, figures = Found(), list[Figure]()
    told = [ids[1:].tolist() for ids in _stories()]
    for seed, bed in beds:
        cell = (bed.name, bed.size)
        corpus = Corpus.of(told[int(TRAIN * len(told)) :], [1], chunk=CHUNK, question=QUESTION, gold=GOLD, seed=seed)
        _seed(found, cell, bed, corpus, seed, queries, tuning)
        said = ", ".join(f"{w} {rows[-1].mean():.4f}" for w in found.compared[cell] for rows in [found.kl(cell, w)])
        progress(f"{bed.name}, seed {seed}, alpha {found.alpha[cell][-1]}: KL of {said}; {found.share(cell, OURS):.1%}")
        for way in found.compared[cell]:
            figures.append(Figure(*cell, seed, way, float(found.kl(cell, way)[-1].mean()), "nats"))
        for way in (OURS, PREFIX):
            share = 100 * found.work[cell][way][-1] / found.whole[cell][-1]
            figures.append(Figure(*cell, seed, f"{way}, of full token-layers", share, "%"))
    checks = _checks(found)
    because = [] if all(c.holds for c in checks) else _because(found)
    return Result(checks, figures, _points(found), {}, because)


def _seed(found: Found, cell: Cell, bed: CacheBed, corpus: Corpus, seed: int, queries: int, tuning: int) -> None:
    store, prefixes = chunk_store(bed.model), chunk_store(bed.model, evict="lru", variants=1000)
    others = list(corpus.queries(tuning, seed + 1000))
    tuned = chunk_store(bed.model)
    fill(tuned, corpus, others)
    alpha = affordable(tuned, corpus, others, BUDGET)
    rows: dict[str, list[Compared]] = {}
    work: dict[str, float] = {}
    whole, nll = 0.0, []
    for number, query in enumerate(corpus.queries(queries, seed)):

        def serve(where: Any = store, chunks: Any = query.chunks, asked: Any = query.question, **how: Any) -> Any:
            return nett.cache.cache_craft(where, corpus.system, chunks, asked, alpha=alpha, **how)

        if number % EVERY == EVERY - 1:
            nll.append(_judge(bed, store, serve, query, number, rows))
        done = {OURS: serve().ledger, PREFIX: serve(prefixes, by="prefix").ledger}
        whole += done[OURS]["full_token_layers"]
        for way, ledger in done.items():
            work[way] = work.get(way, 0.0) + ledger["token_layers"]
    for way, compares in rows.items():
        found.compared.setdefault(cell, {}).setdefault(way, []).append(compares)
    for way, count in work.items():
        found.work.setdefault(cell, {}).setdefault(way, []).append(count)
    found.whole.setdefault(cell, []).append(whole)
    found.nll.setdefault(cell, []).append(np.array(nll))
    found.alpha.setdefault(cell, []).append(alpha)


def _judge(
    bed: CacheBed, store: chunk_store, serve: Any, query: Query, number: int, rows: dict[str, list[Compared]]
) -> float:
    """One question by all ways, into ``rows``. The mean surprise of full recomputation at what follows."""
    full = serve(by="full", keep=False)
    expected = following(bed.model, full, query.gold)
    allowed = at_equal_work(store, serve(keep=False).ledger)
    ways: dict[str, dict[str, Any]] = {
        NONE: {"chunks": [], "by": "full"},
        REUSE: {"by": "reuse"},
        FIRST: {"by": "first"},
        CHANCE: {"by": "random", "seed": number},
        BLEND: {"by": "cacheblend"},
        WORK: {"by": "cacheblend", "share": allowed} if allowed else {"by": "reuse"},
        OURS: {},
    }
    for way, how in ways.items():
        rows.setdefault(way, []).append(compared(bed.model, expected, serve(keep=False, **how), query.gold))
    return compared(bed.model, expected, full, query.gold).nll


def _checks(found: Found) -> list[Check]:
    cells = list(found.compared)
    full = {c: found.share(c, OURS) for c in cells}
    prefix = {c: found.share(c, OURS) / found.share(c, PREFIX) for c in cells}
    means = {c: {w: float(np.mean([k.mean() for k in found.kl(c, w)])) for w in found.compared[c]} for c in cells}
    worse = {
        c: found.gap(c, [np.array([x.nll for x in rows]) for rows in found.compared[c][OURS]], found.nll[c])
        for c in cells
    }
    tenth = all(m[OURS] <= TENTH * m[NONE] for m in means.values())
    kls = "; ".join(f"{' '.join(c)} {m[OURS]:.4f} of {m[NONE]:.4f}" for c, m in means.items())
    simple = {w: found.against(w) for w in (FIRST, CHANCE, REUSE)}
    return [
        Check(f"at most {LEAST:.0%} of full recomputation's token-layers", max(full.values()) <= LEAST, _shares(full)),
        Check(f"at most {PREFIXES:.0%} of prefix caching's", max(prefix.values()) <= PREFIXES, _shares(prefix)),
        Check(
            "quality is maintained: a tenth of the KL without chunks, the text that follows as likely (thousandths of a nat)",
            tenth and not any(g.above for g in worse.values()),
            f"KL {kls}; likelihood lost: {say_gaps(worse)}",
        ),
        _less("CacheBlend at equal token-layers", found.against(WORK)),
        _less("CacheBlend with as many tokens computed again", found.against(BLEND)),
        Check(
            "less KL than first tokens, tokens by chance and full reuse (thousandths of a nat)",
            all(mean_gap(g).above for g in simple.values()),
            "; ".join(f"{w}: {say_gaps(g)}" for w, g in simple.items()),
        ),
    ]


def _less(than: str, gaps: dict[Cell, Gap]) -> Check:
    return Check(f"less KL than {than} (thousandths of a nat)", mean_gap(gaps).above, say_gaps(gaps))


def _shares(of: dict[Cell, float]) -> str:
    return "; ".join(f"{' '.join(c)} {s:.1%}" for c, s in of.items())


def _points(found: Found) -> list[Point]:
    """Quality is minus the KL; token-layers of a seed's questions stand where other rooms have bytes."""
    points = []
    for cell in found.compared:
        asset, work = f"prompt/{' '.join(cell)}", found.work[cell]
        values = [-float(k.mean()) for k in found.kl(cell, OURS)]
        mine = float(np.mean(work[OURS])), float(np.mean(values)), spread(values)
        points.append(Point("cache/cache_craft", asset, *mine, 0.0))
        for name, whole in ((PREFIX, work[PREFIX]), ("full recomputation", found.whole[cell])):
            points.append(Point(name, asset, float(np.mean(whole)), 0.0, 0.0, 0.0, trivial=True))
    return points


def _because(found: Found) -> list[str]:
    said = []
    blend = found.against(BLEND)
    if not mean_gap(blend).above:
        said.append(
            "CacheBlend looks at what is wrong with stored keys and values in this prompt; attention to the old context says which "
            f"tokens may be. Reuse without any token computed again is {_span(found, REUSE)} nats from full recomputation, "
            f"CacheBlend {_span(found, BLEND)}, Cache-Craft {_span(found, OURS)}, chance {_span(found, CHANCE)}."
        )
    return said


def _span(found: Found, way: str) -> str:
    each = [float(np.mean([k.mean() for k in found.kl(c, way)])) for c in found.compared]
    return f"{min(each):.4f} to {max(each):.4f}"
