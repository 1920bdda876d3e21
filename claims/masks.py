"""TALL-masks and consensus on a bed: lambdas chosen by validation, tasks rebuilt in memory and through nett's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import nett
from claims.beds import Bed, Flat, Rows
from claims.merging import BUDGET, DENSITIES, Way, sum_scales, with_density
from nett.core.cards import find_card
from nett.core.errors import NettError
from nett.merge.engine import run as merge
from nett.merge.restoring import restore_task

LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SUM_LAST = 2.0  # the largest scale on what ties elects and sums
TIES_SUM = Way("ties, summed", partial(nett.merge.ties, normalize=False), lambda n: with_density(SUM_LAST))
CONSENSUS, CONSENSUS_TIES = "consensus", "consensus over ties"
OVERLAP = "largest fifth of a task vector that lies in another's"
REST = "distance of a rebuilt task vector from the true one, of its length"


def masked(bed: Bed, lambdas: Sequence[float] | float, **over: Any) -> list[Flat]:
    """Every task rebuilt in memory from the multi-task vector and its mask."""
    found = nett.merge.tall_masks(bed.base, bed.models, mask_lambda=lambdas, **over)
    return [bed.base + mask * found["multi_task_vector"] for mask in found["mask*"]]


def choose_lambdas(bed: Bed, draws: Mapping[int, Rows], **over: Any) -> dict[int, list[float]]:
    """For each seed the lambda of each task that is best on its validation examples; the first of equals."""
    tried = [bed.own_correct(masked(bed, value, **over), "val") for value in LAMBDAS]
    return {
        seed: [LAMBDAS[int(np.argmax([c[t][rows[t]].mean() for c in tried]))] for t in bed.tasks]
        for seed, rows in draws.items()
    }


def uses(bed: Bed, lambdas: Sequence[float]) -> list[float]:
    """For k = 0, 1, …: the percentage of the weights that exactly k masks keep, of those that the vector moves."""
    found = nett.merge.tall_masks(bed.base, bed.models, mask_lambda=lambdas)
    count = np.sum(found["mask*"], axis=0)[found["multi_task_vector"] != 0]
    return [100 * float((count == k).mean()) for k in range(len(bed.tasks) + 1)]


def consensus_over_ties(lambdas: Mapping[float, Sequence[float]]) -> Way:
    """Consensus over ties, with the lambdas that were chosen at each density."""

    def make(base: Flat, tuned: Sequence[Flat], *, density: float, scale: float, min_tasks: int = 2) -> Flat:
        options = {"over": "ties", "density": density, "mask_lambda": list(lambdas[density])}
        return nett.merge.consensus(base, tuned, min_tasks=min_tasks, scale=scale, **options)

    spent = len(LAMBDAS) * len(DENSITIES)
    return Way(CONSENSUS_TIES, make, lambda n: with_density(SUM_LAST, BUDGET - spent))


def consensus_over_sum(lambdas: Sequence[float], min_tasks: int = 2) -> Way:
    """Consensus over task arithmetic."""
    make = partial(nett.merge.consensus, min_tasks=min_tasks, mask_lambda=list(lambdas))
    return Way(CONSENSUS, make, lambda n: [{"scale": s} for s in sum_scales(n, BUDGET - len(LAMBDAS))])


def interference(bed: Bed, lambdas: Sequence[float]) -> tuple[list[Flat], dict[str, float]]:
    """Every task's own vector on its mask, on the base; and, in percent, how far the rebuilt vectors are off and how
    much of one task's largest fifth is also another's."""
    found = nett.merge.tall_masks(bed.base, bed.models, mask_lambda=lambdas)
    deltas = [m - bed.base for m in bed.models]
    own = [bed.base + mask * delta for mask, delta in zip(found["mask*"], deltas, strict=True)]
    vector = found["multi_task_vector"]
    off = [np.linalg.norm(m * vector - d) / np.linalg.norm(d) for m, d in zip(found["mask*"], deltas, strict=True)]
    nothing = np.zeros_like(bed.base)
    fifths = [nett.merge.ties(nothing, [d], density=0.2, scale=1.0) != 0 for d in deltas]
    shared = [(a & b).sum() / a.sum() for a, b in permutations(fifths, 2)]
    return own, {REST: 100 * float(np.mean(off)), OVERLAP: 100 * float(np.mean(shared))}


@dataclass(frozen=True)
class Files:
    """What came through files: the fine-tunes as they were written, the tasks as they were restored, and bytes."""

    written: list[Flat]
    restored: list[Flat]
    bytes_tuned: int  # all fine-tunes
    bytes_base: int
    bytes_merged: int  # vector and masks
    bytes_folder: int  # the same with receipt and report


def through_files(bed: Bed, lambdas: Sequence[float], dtype: torch.dtype) -> Files:
    """``nett merge tall_masks`` on written checkpoints, then ``nett restore`` of every task."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        base, tuned = bed.write(folder, dtype)
        out, given = folder / "out", {"mask_lambda": list(lambdas)}
        receipt = merge(
            find_card("merge/tall_masks"), [str(t) for t in tuned], given, base=base, out=out, speak=False, threads=1
        )
        restored = []
        for task in bed.tasks:
            back = folder / f"back-{task}"
            restore_task(out, receipt, task=task, out=back, threads=1)
            restored.append(bed.read_one(back))
        files = [f for f in out.rglob("*") if f.is_file()]
        found = Files(
            [torch.from_numpy(m).to(dtype).float().numpy() for m in bed.models],
            restored,
            sum(t.stat().st_size for t in tuned),
            base.stat().st_size,
            sum(f.stat().st_size for f in files if f.suffix == ".safetensors"),
            sum(f.stat().st_size for f in files),
        )
    if dtype == torch.float32:
        for task, read, memory in zip(bed.tasks, restored, masked(bed, lambdas), strict=True):
            if not np.array_equal(read, memory):
                raise NettError(f"{bed.name}, {task}: what was restored from files is not what the kernel rebuilds")
    return found
