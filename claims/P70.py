"""P70, EoRA: does a training-free adapter in the inputs' eigenspace win back what a compression cost?

A model is compressed to 3 bits (rtn) and to 2 of 4 weights (wanda; on the small model only), in half precision, and given
adapters; calibration text differs with the seed (one seed on the large model), held-out text is another part of the same stories. The extra bytes are those of the adapter's
file against those of the compressed model's, whose 2:4 layers are counted as if packed (9/16 of their bytes).

The rule of the verdict (written from the paper's abstract and the issue before any number was known). "Better" is: in the mean
over the cells by more than two standard errors of the paired log likelihood, and at no cell worse by more than two.

1. At the largest rank whose adapter takes at most 5 % more bytes (rank 1 where none does), EoRA wins back at least half
   of the perplexity that the compression cost, at every cell.
2. EoRA is better than a plain SVD of the difference at the same rank.
3. At equal total bytes, 3 bits with EoRA are better than 3 bits with more of them: smaller groups where the layers allow
   them, or 4 bits in as many layers; whichever of these is the best.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from claims.compressed import Bed, beds, gap, perplexity, seconds, weights_bytes, work_folder
from claims.outcomes import Cell, Gap, better, say_gaps, spread
from nett.core.checkpoint import open_checkpoint
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point

PAPER = "P70"
CLAIM = (
    "A low-rank adapter computed without training, in the eigenspace of the inputs' second moments, wins back most of what a "
    "compression to 3 bits or to 2:4 sparsity cost, for a few percent more bytes."
)
METHODS = ["weights/eora"]

SIZES = {"stories260K": (256, 64, 40), "SmolLM2-135M": (256, 8, 6)}  # length, calibration windows, held-out windows
EXTRA, HALF = 5.0, 50.0  # percent
PACKED = 9 / 16  # of the bytes of a 2:4 layer in half precision
CURVE = (4, 16)  # further ranks, on the small model
MORE = {  # 4 bits where they take no more than the adapter that they are compared with
    "stories260K": ["*.down_proj", "*.o_proj", "*.v_proj"],
    "SmolLM2-135M": ["*.down_proj", "*.o_proj"],
}

SMALL, LARGE = "stories260K", 1  # seeds of the large model

TAKEN = "squared output error of a layer taken away by rank"

Say = Callable[[str], None]


def run(seeds: Sequence[int], progress: Say) -> Result:
    """The experiment on all beds that there are."""
    skipped: dict[str, str] = {}
    found = Found()
    with work_folder(PAPER) as folder:
        for bed in beds(folder, skipped, SIZES):
            here = seeds if bed.name == SMALL else seeds[:LARGE]
            for way in ("rtn", "wanda") if bed.name == SMALL else ("rtn",):
                _cell(bed, way, here, found, progress)
            _more_bits(bed, here, found, progress)
    return Result(_checks(found), found.figures, found.points, skipped, _because(found))


class Found:
    """What was measured, cell by cell."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.points: list[Point] = []
        self.won: dict[Cell, list[float]] = {}
        self.extra: dict[Cell, float] = {}
        self.taken: dict[Cell, list[float]] = {}
        self.svd: dict[Cell, Gap] = {}
        self.bits: dict[Cell, Gap] = {}


def _compressed(bed: Bed, way: str, seed: int) -> Path:
    if way == "rtn":
        return bed.run("rtn", "rtn-3", bits=3, group=0)
    return bed.run("wanda", f"wanda-{seed}", seed=seed, pattern="2:4")


def _bytes(bed: Bed, way: str, folder: Path) -> tuple[float, int]:
    """Of the compressed model; of an adapter of rank 1."""
    with open_checkpoint(bed.model) as original:
        shapes = [t.shape for n, t in original.tensors.items() if "_proj." in n]
    whole = float(weights_bytes(folder))
    if way == "wanda":
        whole -= (1 - PACKED) * 2 * sum(a * b for a, b in shapes)
    return whole, 2 * sum(a + b for a, b in shapes)


def _cell(bed: Bed, way: str, seeds: Sequence[int], found: Found, progress: Say) -> None:
    cell = (bed.name, {"rtn": "3 bits", "wanda": "2:4"}[way])
    original = bed.surprise(bed.model)
    first = _compressed(bed, way, seeds[0])
    whole, one = _bytes(bed, way, first)
    rank = max(1, int(EXTRA / 100 * whole / one))
    found.extra[cell] = 100 * rank * one / whole
    ranks = (rank, *CURVE) if bed.name == SMALL else (rank,)
    rows: dict[str, list[np.ndarray]] = {"none": [], "eora": [], "svd": [], "activation": []}

    def note(seed: int, what: str, value: float, unit: str = "perplexity") -> None:
        found.figures.append(Figure(*cell, seed, what, value, unit))

    note(seeds[0], "original", perplexity(original))
    note(seeds[0], f"extra bytes of rank {rank}", found.extra[cell], "%")
    for seed in seeds:
        over = _compressed(bed, way, seed)
        rows["none"].append(bed.surprise(over))
        note(seed, "compressed", perplexity(rows["none"][-1]))
        for by in ("eora", "svd", "activation") if bed.name == SMALL else ("eora", "svd"):
            if by == "svd" and way == "rtn" and seed != seeds[0]:
                rows[by].append(rows[by][0])  # knows nothing of the text
                continue
            for r in ranks if by == "eora" else (rank,):
                # What knows nothing of the text needs little of it.
                samples = bed.samples if by != "svd" else 2
                made = bed.run("eora", f"{way}-{by}-{r}-{seed}", [over], seed=seed, rank=r, by=by, samples=samples)
                measured = bed.surprise(f"{over}+{made}")
                note(seed, f"{by}, rank {r}", perplexity(measured))
                if by == "eora":
                    share = _taken(made)
                    note(seed, f"{TAKEN} {r}", share, "%")
                    if r == rank:
                        found.taken.setdefault(cell, []).append(share)
                if r == rank:
                    rows[by].append(measured)
                    if by == "eora" and seed == seeds[-1]:
                        found.points.append(_point(bed, cell, made, whole, original, rows[by]))
        lost = perplexity(rows["none"][-1]) - perplexity(original)
        won = 100 * (perplexity(rows["none"][-1]) - perplexity(rows["eora"][-1])) / lost
        found.won.setdefault(cell, []).append(won)
        note(seed, f"perplexity won back by eora, rank {rank}", won, "%")
        said = ", ".join(f"{k} {perplexity(v[-1]):.3f}" for k, v in rows.items() if v)
        progress(f"{' '.join(cell)} seed {seed}: original {perplexity(original):.3f}, {said}; {won:.0f} % won back")
    found.svd[cell] = gap(rows["eora"], rows["svd"])
    quality = -float(np.mean([r.mean() for r in rows["none"]]))
    asset = f"llm/{bed.name} {cell[1]}"
    found.points.append(Point("compressed alone", asset, whole, quality, 0.0, seconds(first), trivial=True))


def _taken(made: Path) -> float:
    """Percent of a layer's squared output error that its adapter takes away; mean over the layers."""
    rows = json.loads((made / "nett.json").read_text())["tensors"]
    return 100 * float(np.mean([1 - r["error"] / r["error_before"] for r in rows if r["error_before"]]))


def _point(bed: Bed, cell: Cell, made: Path, whole: float, original: np.ndarray, rows: list[np.ndarray]) -> Point:
    means = [-float(r.mean()) for r in rows]
    size = whole + weights_bytes(made)
    return Point("weights/eora", f"llm/{bed.name} {cell[1]}", size, float(np.mean(means)), spread(means), seconds(made))


def _more_bits(bed: Bed, seeds: Sequence[int], found: Found, progress: Say) -> None:
    """3 bits with an adapter against 3 bits and as many bytes more of bits."""
    cell = (bed.name, "3 bits, equal bytes")
    coarse = _compressed(bed, "rtn", seeds[0])
    file = bed.folder / "more.json"
    file.write_text(json.dumps({pattern: {"bits": 4} for pattern in MORE[bed.name]}))
    rivals = {"4 bits in some layers": bed.run("rtn", "rtn-more", bits=3, group=0, per_layer=file)}
    if bed.name != SMALL:
        rivals["groups of 32"] = bed.run("rtn", "rtn-32", bits=3, group=32)
    whole, one = _bytes(bed, "rtn", coarse)
    rank = max(1, int(EXTRA / 100 * whole / one))  # at least the bytes of any rival
    results = {name: bed.surprise(f) for name, f in rivals.items()}
    for name, measured in results.items():
        size = weights_bytes(rivals[name])
        found.figures.append(Figure(*cell, seeds[0], name, perplexity(measured), "perplexity", f"{size:,} bytes"))
    ours = []
    for seed in seeds:
        made = bed.run("eora", f"rtn-eora-{rank}-{seed}", [coarse], seed=seed, rank=rank)
        ours.append(bed.surprise(f"{coarse}+{made}"))
        size = weights_bytes(coarse) + weights_bytes(made)
        said = f"eora, rank {rank}"
        found.figures.append(Figure(*cell, seed, said, perplexity(ours[-1]), "perplexity", f"{size:,} bytes"))
    best = min(results, key=lambda n: float(results[n].mean()))
    found.bits[cell] = gap(ours, [results[best]] * len(ours))
    said = ", ".join(f"{n} {perplexity(m):.3f}" for n, m in results.items())
    progress(f"{' '.join(cell)}: eora rank {rank} {[round(perplexity(o), 3) for o in ours]}, {said}")


def _checks(found: Found) -> list[Check]:
    said = "; ".join(
        f"{' '.join(c)} {np.mean(v):.0f} % (seeds {min(v):.0f} to {max(v):.0f}) for {found.extra[c]:.1f} % more bytes"
        for c, v in found.won.items()
    )
    return [
        Check(
            "EoRA wins back at least half of the lost perplexity for at most 5 % more bytes, at every cell",
            all(np.mean(v) >= HALF and found.extra[c] <= EXTRA for c, v in found.won.items()),
            said,
        ),
        Check("EoRA is better than plain SVD at the same rank", better(found.svd), say_gaps(found.svd)),
        Check("3 bits with EoRA are better than more bits in equal bytes", better(found.bits), say_gaps(found.bits)),
    ]


def _because(found: Found) -> list[str]:
    said = []
    wide = {c: e for c, e in found.extra.items() if e > EXTRA}
    if wide:
        cells = ", ".join(f"{' '.join(c)} {e:.1f} %" for c, e in wide.items())
        said.append(f"On matrices of 64 columns rank 1 already takes more than 5 % ({cells}).")
    few = [c for c, v in found.won.items() if np.mean(v) < HALF]
    if few:
        shares = ", ".join(f"{' '.join(c)} {np.mean(found.taken[c]):.0f} %" for c in few)
        said.append(f"So small a rank takes away only a part of a layer's squared output error, in the mean: {shares}.")
    lost = ", ".join(cell[0] for cell, margin in found.bits.items() if margin.below)
    if lost:
        said.append(f"A bit more in some of the layers is worth more than an adapter of as many bytes on {lost}.")
    return said
