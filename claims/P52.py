"""P52, quantising code models: do 4 bits cost nothing that can be seen, and does the calibration text matter below?

The rule of the verdict (written from the paper's abstract before any number was known). One model of code is quantised
by gptq to 8, 4, 3 and 2 bits, each with four calibration texts (code, prose, both in equal parts, random tokens), in one
draw of windows a seed. All arms answer the same questions: held-out modules of Python and held-out prose, token by token
(every 16th token is a question), and halves of functions to go on with, which parse or do not. A comparison differs if
its exact McNemar test does, adjusted by Benjamini and Hochberg for all comparisons of the study. The paper compares
pass@1; a model of this size solves no tasks, so that parse rate and next tokens stand in its place.

1. At 8 and 4 bits, calibrated on code, no significant loss: no comparison with the original differs, on any draw.
2. At 2 bits there is one: on code, every draw differs from the original.
3. Calibration matters at 3 and 2 bits: calibrated on code, the perplexity on code is lower than with prose, and lower
   than with random tokens, at both widths, by more than two paired standard errors (windows and draws).
4. It does not matter at 4 bits or more: there the perplexity on code with prose is within 1 % of that with code.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from math import exp, hypot, sqrt
from pathlib import Path
from typing import Any

import numpy as np

import nett
from claims.coding import SIZES, TRAINING, lacking, texts, write_model
from claims.merging import Say
from claims.outcomes import Gap, spread
from nett.core.claims import Check, Figure, Result
from nett.core.errors import Refused
from nett.core.standing import Point
from nett.weights.study_compare import differing

PAPER = "P52"
CLAIM = (
    "Quantised to 4 bits a model of code loses nothing that paired tests can see; at 3 and 2 bits it does, and there a "
    "calibration text like the task loses less than others."
)
METHODS = ["weights/study"]

BED = "stdlib"
BITS = (8, 4, 3, 2)
SOURCES = ("code", "prose", "mixed", "random")
CODE = "next token, code"
ONE_PERCENT = 1.0  # of the perplexity: what rule 4 calls no matter


def run(seeds: Sequence[int], progress: Say) -> Result:
    """Train, quantise 48 times, and test."""
    why = lacking()
    if why is not None:
        raise Refused(f"has no other bed than one that needs texts: {why}", where="claims/P52")
    with tempfile.TemporaryDirectory() as name:
        told, size = _study(Path(name), len(seeds), min(seeds), progress)
    return result(told, size, seeds)


def _study(folder: Path, draws: int, seed: int, progress: Say) -> tuple[dict[str, Any], str]:
    given = texts()
    model = _trained(given, progress)
    files = {}
    for name, parts in (("code", given.code), ("prose", given.prose)):
        for part in ("calibration", "test"):
            files[name, part] = folder / f"{name}-{part}.{'py' if name == 'code' else 'txt'}"
            files[name, part].write_text(parts[part], encoding="utf-8")
    told = nett.weights.study(
        [str(model)],
        calibration=f"code={files['code', 'calibration']},prose={files['prose', 'calibration']},mixed,random",
        eval=f"code={files['code', 'test']},prose={files['prose', 'test']}",
        bits=",".join(map(str, BITS)),
        draws=draws,
        seed=seed,
        samples=16,
        judged=48,
        length=128,
        tasks=files["code", "test"],
        most=32,
        new=32,
        threads=1,
        out=model / "study",  # what was done of a run that was killed is not done again
    )
    for line in told["say"]:
        progress(line)
    weights = next(a for a in told["arms"] if a["bits"])["bits_a_weight"]
    progress(f"{weights:.3f} bits a weight at {BITS[0]} bits, scales included")
    return told, f"{SIZES['num_hidden_layers']} blocks"


def _trained(given: Any, progress: Say) -> Path:
    """The model, trained once for these texts and settings on this machine (a folder among the temporary ones)."""
    key = hashlib.sha256(repr((given.code["train"], given.prose["train"], SIZES, TRAINING)).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"nett-coding-{os.getuid()}-{key}"
    if not (folder / "model.safetensors").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder, given, say=progress)
    return folder


def result(told: dict[str, Any], size: str, seeds: Sequence[int]) -> Result:
    """The verdict and the figures of a study."""
    figures = list[Figure]()
    arms = {(a["bits"], a["source"], a["draw"]): a for a in told["arms"]}
    first = min(seeds)
    for (bits, source, draw), arm in arms.items():
        name = f"{bits} bits, {source}" if bits else "original"
        seed = first + draw
        for text in ("code", "prose"):
            figures.append(Figure(BED, size, seed, f"{name}: perplexity on {text}", exp(arm["nll"][text]), ""))
        figures.append(Figure(BED, size, seed, f"{name}: next tokens of code", 100 * arm["hits code"]))
        figures.append(Figure(BED, size, seed, f"{name}: completions that parse", 100 * arm["parses"]))
    gaps = {(b, s): _gap(arms, b, "code", s, told) for b in BITS for s in SOURCES if s != "code"}
    for (bits, source), gap in gaps.items():
        what = f"{bits} bits: {source} against code, perplexity on code"
        figures.append(Figure(BED, size, first, what, gap.mean, "%", f"± {gap.error:.3f}"))
    for row in told["comparisons"]:
        if row["first"] == "original" and row["second"] == "code":
            what = f"{row['bits']} bits, code: adjusted p against the original, {row['asked']}"
            odds = "none" if row["odds"] is None else f"{row['odds']:.3f}"
            figures.append(
                Figure(
                    BED,
                    size,
                    first + row["draw"],
                    what,
                    row["q"],
                    "",
                    f"odds {odds}, lost {row['lost']}, gained {row['gained']}",
                )
            )
    checks = _checks(told, gaps)
    because = () if all(c.holds for c in checks) else _because(told, gaps, arms)
    return Result(checks, figures, list[Point](), {}, because)


def _gap(arms: Any, bits: int, mine: str, other: str, told: Any) -> Gap:
    """By how many percent the perplexity on code is higher with ``other`` than with ``mine``: mean over the draws; its
    error joins the spread over draws with that over windows, which draws share."""
    draws = sorted({a[2] for a in arms if a[:2] == (bits, mine)})
    rows = [
        100 * (np.array(arms[bits, other, d]["windows"]["code"]) - np.array(arms[bits, mine, d]["windows"]["code"]))
        for d in draws
    ]
    means = [float(r.mean()) for r in rows]
    windows = float(np.mean(rows, axis=0).std(ddof=1) / sqrt(len(rows[0])))
    return Gap(float(np.mean(means)), hypot(spread(means) / sqrt(len(means)), windows))


def _checks(told: Any, gaps: dict[tuple[int, str], Gap]) -> list[Check]:
    rows = [r for r in told["comparisons"] if r["first"] == "original" and r["second"] == "code"]
    high = {b: differing(rows, bits=b) for b in (8, 4)}
    low = differing(rows, bits=2, asked=CODE)
    matter = {k: g for k, g in gaps.items() if k[0] < 4 and k[1] != "mixed"}
    fine = {k: g for k, g in gaps.items() if k[0] >= 4 and k[1] == "prose"}

    def said(chosen: dict[tuple[int, str], Gap]) -> str:
        return "; ".join(f"{b} bits, {s} instead of code {g} %" for (b, s), g in chosen.items())

    return [
        Check("at 8 and 4 bits, calibrated on code, no comparison with the original differs", not any(n for n, _ in high.values()),
              "; ".join(f"{b} bits: {n} of {of} differ" for b, (n, of) in high.items())),
        Check("at 2 bits the next tokens of code differ from the original's on every draw", low[0] == low[1] > 0, f"{low[0]} of {low[1]} differ"),
        Check("at 3 and 2 bits code as calibration text beats prose and random tokens (two standard errors)",
              all(g.above for g in matter.values()), said(matter)),
        Check("at 8 and 4 bits prose instead of code costs less than 1 % of perplexity on code",
              all(g.mean < ONE_PERCENT for g in fine.values()), said(fine)),
    ]  # fmt: skip


def _because(told: Any, gaps: dict[tuple[int, str], Gap], arms: Any) -> list[str]:
    """The causes, in the figures of this run."""
    count, tasks = told["questions"]["code"], told["tasks"]
    rows = {(r["bits"], r["source"]): r["ratio code"] for r in told["summary"]}
    ratios = ", ".join("{} bits {:.3f} ({:.3f} to {:.3f})".format(b, *rows[b, "code"]) for b in BITS)
    found, of = differing(told["comparisons"])
    said = [
        f"Perplexity on code, calibrated on code, as a multiple of the original's with its paired interval: {ratios}.",
        f"{count} questions and {tasks} completions are few: of {of} comparisons {found} differ after the adjustment. So rule 1 says "
        "little by itself; where the intervals above leave 1, the loss is there and the tests do not see it.",
    ]
    mixed = {b: gaps[b, "mixed"] for b in (3, 2)}
    said.append(
        "Half code, half prose instead of code: " + ", ".join(f"{g} % at {b} bits" for b, g in mixed.items()) + "."
    )
    return said
