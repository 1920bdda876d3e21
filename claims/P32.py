"""P32, BitStack: is one stack of blocks as good, at any budget, as what was made for that budget alone?

Budgets are the bytes that rounding takes at 2, 3 and 4 bits (with the scales of its rows or groups), and a fixed 1.1 bits a
weight; whole models in half precision but for their blocks' linear layers, which all ways change alike. Rounding and gptq
are tuned on the held-out text, in their favour (groups; the SVD of the weights as they are or under the stack's own scales), and the
SVD has the largest ranks that fit. Calibration text differs with the seed (one seed on the large model), held-out text is another part of the same stories.

The rule of the verdict (written from the paper's abstract and the issue before any number was known). A cell is a model at a
budget. "Better" is: in the mean over the cells by more than two standard errors of the paired log likelihood, and at no cell worse
by more than two. At 4 bits nothing is asked.

1. At and below 3 bits BitStack is better than rounding, at every budget for which there is both.
2. At and below 3 bits BitStack is better than an SVD.
3. At and below 3 bits BitStack is better than gptq.
4. Budgets are met in steps of at most 1 MB, and changing one at run time takes less than a second of the CPU.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import nett
from claims.compressed import Bed, beds, gap, perplexity, seconds, work_folder
from claims.outcomes import Cell, Gap, better, say_gaps, spread
from nett.core.checkpoint import open_checkpoint
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point

PAPER = "P32"
CLAIM = (
    "One stack of signs and low-rank magnitudes, cut at any budget in steps of a megabyte, is as good as or better than models "
    "quantised for that budget, above all below 3 bits a weight."
)
METHODS = ["weights/bitstack"]

SMALL = "stories260K"
SIZES = {SMALL: (256, 64, 40), "SmolLM2-135M": (256, 8, 6)}  # length, calibration windows, held-out windows
BITS, LOW = {SMALL: (1.1, 2, 3, 4), "SmolLM2-135M": (1.1, 2, 3)}, 3
GROUPS = {SMALL: (-1,), "SmolLM2-135M": (64,)}
SEEDS = {SMALL: 3, "SmolLM2-135M": 1}
# An order of 210 layers takes 210 runs of half the model a level: the large model's comes from its layers' errors.
STACK: Mapping[str, Mapping[str, Any]] = {
    SMALL: {"blocks": 6, "rank": 1},
    "SmolLM2-135M": {"blocks": 5, "rank": 1, "order": "error"},
}
STEP, SECOND = 1_000_000, 1.0

Say = Callable[[str], None]
Rows = dict[str, dict[float, list[np.ndarray]]]  # way -> bits -> one array a seed


def run(seeds: Sequence[int], progress: Say) -> Result:
    """The experiment on all beds that there are."""
    skipped: dict[str, str] = {}
    figures, points, steps = list[Figure](), list[Point](), list[tuple[str, int, float]]()
    gaps: dict[str, dict[Cell, Gap]] = {"rtn": {}, "SVD": {}, "gptq": {}}
    with work_folder(PAPER) as folder:
        for bed in beds(folder, skipped, SIZES):
            rows = _bed(bed, seeds[: SEEDS[bed.name]], figures, points, progress)
            for rival, cells in gaps.items():
                for bits, theirs in rows[rival].items():
                    ours = rows["bitstack"].get(bits)
                    if ours and theirs and bits <= LOW:
                        cells[(bed.name, f"{bits:g} bits")] = gap(ours[: len(theirs)], theirs)
            steps.append((bed.name, *_resized(bed, seeds[0])))
            progress(f"{steps[-1]}")
    checks = [
        Check(f"BitStack is better than {name} at and below 3 bits", better(cells), say_gaps(cells))
        for name, cells in (("rounding", gaps["rtn"]), ("an SVD", gaps["SVD"]), ("gptq", gaps["gptq"]))
    ]
    checks.append(
        Check(
            "a step takes at most 1 MB, and a change of the budget at run time less than a second of the CPU",
            all(size <= STEP and took < SECOND for _, size, took in steps),
            "; ".join(f"{name} {size:,} bytes, {took:.2f} s" for name, size, took in steps),
        )
    )
    return Result(checks, figures, points, skipped, _because(checks, figures))


def _bed(bed: Bed, seeds: Sequence[int], figures: list[Figure], points: list[Point], progress: Say) -> Rows:
    rows: Rows = {"bitstack": {}, "rtn": {}, "SVD": {}, "gptq": {}}
    with open_checkpoint(bed.model) as original:
        inside = {n: t.shape for n, t in original.tensors.items() if "_proj." in n}
        ground = original.nbytes - sum(2 * a * b for a, b in inside.values())
    count = sum(a * b for a, b in inside.values())
    figures.append(Figure(bed.name, "16 bits", seeds[0], "original", perplexity(bed.surprise(bed.model)), "perplexity"))
    stacks = [bed.run("bitstack", f"stack-{seed}", seed=seed, **STACK[bed.name]) for seed in seeds]
    rounded, budgets = dict[float, dict[int, Path]](), dict[float, int]()
    for bits in BITS[bed.name]:
        groups = GROUPS[bed.name] if bits >= 2 else ()
        rounded[bits] = {g: bed.run("rtn", f"rtn-{bits}{g}", bits=bits, group=g) for g in groups}
        budgets[bits] = max((_tensor_bytes(f) for f in rounded[bits].values()), default=ground + int(bits * count / 8))
    shares = {bits: 8 * (budget - ground) / count for bits, budget in budgets.items()}
    cuts = [_svds(bed, stacks[0], shares, inside, scaled=s) for s in ((True, False) if bed.name == SMALL else (True,))]
    for bits, budget in budgets.items():
        quantised = rounded[bits]
        best = min((cut[bits] for cut in cuts), key=lambda f: float(bed.surprise(f).mean()))
        found: dict[str, list[tuple[int, np.ndarray, float]]] = {
            "bitstack": [],
            "SVD": [(seeds[0], bed.surprise(best), 0.0)],
            "gptq": [],
        }
        for seed, stack in zip(seeds, stacks, strict=True):
            if _smallest(stack) <= budget:
                measured = bed.surprise(stack / str(budget))
                found["bitstack"].append((seed, measured, seconds(stack)))
            if quantised:
                tried = [bed.run("gptq", f"gptq-{bits}{g}-{seed}", seed=seed, bits=bits, group=g) for g in quantised]
                best = min(tried, key=lambda f: float(bed.surprise(f).mean()))
                found["gptq"].append((seed, bed.surprise(best), seconds(best)))
        if quantised:
            best = min(quantised.values(), key=lambda f: float(bed.surprise(f).mean()))
            found["rtn"] = [(seeds[0], bed.surprise(best), seconds(best))]
        cell = bed.name, f"{bits:g} bits"
        note = f"{budget:,} bytes, {8 * (budget - ground) / count:.2f} bits a weight"
        for way, measured_rows in found.items():
            for seed, measured, _ in measured_rows:
                figures.append(Figure(*cell, seed, way, perplexity(measured), "perplexity", note))
            if measured_rows:
                # Ways that know nothing of the text stand once for every seed.
                arrays = [m for _, m, _ in measured_rows]
                rows[way][bits] = arrays if way in ("bitstack", "gptq") else arrays * len(seeds)
                means = [-float(a.mean()) for a in arrays]
                name = f"weights/{way}" if way != "SVD" else "SVD"
                took = measured_rows[0][2]
                asset = f"llm/{bed.name} {bits:g} bits"
                points.append(
                    Point(name, asset, budget, float(np.mean(means)), spread(means), took, trivial=way == "SVD")
                )
        said = ", ".join(f"{w} {np.mean([perplexity(m) for _, m, _ in r]):.3f}" for w, r in found.items() if r)
        progress(f"{bed.name} {note}: {said}")
    return rows


def _tensor_bytes(folder: Path) -> int:
    with open_checkpoint(folder) as checkpoint:
        return checkpoint.nbytes


def _smallest(stack: Path) -> int:
    return int(json.loads((stack / "nett.json").read_text())["figures"]["smallest_bytes"])


def _svds(
    bed: Bed, stack: Path, budgets: Mapping[float, float], inside: Mapping[str, Any], *, scaled: bool
) -> dict[float, Path]:
    """Bits -> a dense folder of the layers cut to the largest rank whose factors in half precision take as many bits a
    weight as ``budgets`` says; of the weights as they are, or under a stack's scales."""
    word = "scaled" if scaled else "plain"
    folders = {bits: bed.folder / f"svd-{word}-{bits}" for bits in budgets}
    if all((f / "done").exists() for f in folders.values()):
        return folders
    tensors = load_file(bed.model / "model.safetensors")
    scales = load_file(stack / "signs" / "signs.safetensors")
    made: dict[float, dict[str, torch.Tensor]] = {bits: dict(tensors) for bits in budgets}
    for name, (rows, columns) in inside.items():
        scale = scales[f"{name.removesuffix('.weight')}.scale"].double() if scaled else 1.0
        weight = tensors[name].double() * scale
        tall = rows > columns
        side = weight.T if tall else weight
        vectors = torch.linalg.eigh(side @ side.T)[1]
        for bits, share in budgets.items():
            rank = min(rows, columns, int(share * rows * columns / (16 * (rows + columns))))
            left = vectors[:, vectors.shape[1] - rank :].half().double()
            product = left @ (left.T @ side).half().double()
            made[bits][name] = ((product.T if tall else product) / scale).half().contiguous()
    for bits, folder in folders.items():
        shutil.copytree(bed.model, folder, dirs_exist_ok=True)
        save_file(made[bits], folder / "model.safetensors", {"format": "pt"})
        (folder / "done").touch()
    return folders


def _resized(bed: Bed, seed: int) -> tuple[int, float]:
    """The largest step, and the CPU seconds of the slowest of four changes of the budget at run time."""
    stack = bed.folder / f"stack-{seed}"
    figures = json.loads((stack / "nett.json").read_text())["figures"]
    low, high = figures["smallest_bytes"], figures["largest_bytes"]
    slowest = 0.0
    with nett.weights.stacked(stack) as model:
        for budget in (low, high, (low + high) // 2, low + (high - low) // 4):
            began = time.process_time()
            model.resize(budget)
            slowest = max(slowest, time.process_time() - began)
    return int(figures["largest_step_bytes"]), slowest


def _because(checks: Sequence[Check], figures: Sequence[Figure]) -> list[str]:
    said = []
    if any(f.bed == SMALL for f in figures):
        said.append(
            "On matrices of 64 columns a block takes 1.5 bits a weight and the scales a quarter of a bit, so there is no stack of 1.1 "
            "bits and one of 3.3 bits has two blocks; a layer of 576 columns has three, as a block takes 1.04 to 1.06 bits there."
        )
    if not checks[2].holds:
        said.append(
            "gptq moves the weights that are still to be rounded against the errors made; a stack's layers know only scales."
        )
    return said
