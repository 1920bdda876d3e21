"""How several fine-tunes of one base would get in each other's way in a merge, and which merge was measured to cope."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Annotated, Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.layers import layer_of
from nett.core.registry import Between, method
from nett.core.sweep import Pass
from nett.scan.advice import advise
from nett.scan.conflicts import Common, Conflict, Conflicts
from nett.scan.protocol import Asset, Findings, Probe, Study, probe
from nett.scan.subspaces import angles

FAR = 0.5  # of the base's norm: a checkpoint that moved further is no fine-tune


@method(papers=["P10", "P04"], title="Interference of fine-tunes", kind="measure", guarantee="measured", command=True)
@probe
def interference(
    assets: Sequence[Asset],
    *,
    top: Annotated[float, Between(0, 1, open_low=True)] = 0.2,
    rank: Annotated[int, Between(1, 64)] = 8,
    matrices: Annotated[int, Between(0, 1000)] = 2,
    seed: Annotated[int, Between(0)] = 0,
) -> Probe:
    """Measure where fine-tunes of the first checkpoint pull against each other, before they are merged.

    Sign conflicts (share of the elements, and of the mass of all changes), what a plain sum cancels, cosines of the task
    vectors, how many of the largest entries each two share, and the principal angles between the subspaces in which they
    change a matrix. Of the merges that claims have measured on fine-tunes like these, it names the best, with the
    command; where they have measured none like these, it says so.

    Args:
        top: share of all elements that counts as the largest entries of a task vector.
        rank: leading directions of each matrix's change that are compared.
        matrices: how many matrices of each kind of layer are looked at for them, evenly spaced; 0 for none.
        seed: of the rows that are sampled from matrices with more than 1024 of both rows and columns.
    When to use: before merging; the base first, then two or more fine-tunes.
    When not: on unrelated models; nothing is found there.
    Guarantee: measured. Counts, masses, cosines and overlaps are of every element; subspaces of a sample that is named.
    Cost: two readings of each checkpoint, and some matrices a third time.
    Source: P10 (section 3), P04 (section 3).
    """
    base, tuned = (assets[0], list(assets[1:])) if assets else (None, [])
    names = _common(base, tuned) if base is not None and len(tuned) > 1 else []
    if base is None or not names:
        yield []
        return Findings(figures={"compared": 0, "why": _why_not(base, tuned)})
    kinds = {n: [a.checkpoint.tensors[n].dtype for a in (base, *tuned)] for n in names}
    sources = {n: tuple(a.source(n) for a in (base, *tuned)) for n in names}
    looks = {n: Pass(sources[n], Conflict(kinds[n])) for n in names}
    yield list(looks.values())
    found: dict[str, Conflicts] = {n: one.answer for n, one in looks.items()}
    total = _sum(list(found.values()))
    edges, counted = total.edges(top)
    shared = {n: Pass(sources[n], Common(kinds[n], edges)) for n in names}
    chosen = _chosen(base, names, found, matrices)
    studies = {n: Study(sources[n], functools.partial(angles, rank, seed)) for some in chosen.values() for n in some}
    yield [*shared.values(), *studies.values()]
    common = sum((one.answer for one in shared.values()), np.zeros_like(total.both))
    figures = _figures(base, tuned, total) | {
        "top": _tops(total, counted, common, top),
        "by_kind": {kind: _of_kind([found[n] for n in some]) for kind, some in _kinds(names).items()},
        "subspaces": {kind: _angles(some, studies) for kind, some in chosen.items()},
        "not_compared": sorted(
            {n for n, t in base.checkpoint.tensors.items() if t.dtype.is_float and t.size} - set(names)
        ),
    }
    figures["advice"] = advise(
        base.path,
        [a.path for a in tuned],
        cosine=figures["mean_cosine"],
        moved_by_two=float(total.sums[0]),
        still=[tuned[t].path for t in total.still()],
        twins=[(tuned[s].path, tuned[t].path) for s, t in total.twins()],
        far=[a.path for a, row in zip(tuned, figures["rows"], strict=True) if row["norm_ratio"] > FAR],
        nbytes=base.checkpoint.nbytes,
    )
    for asset, row in zip(tuned, figures.pop("rows"), strict=True):
        figures[asset.path] = row
    return Findings(figures=figures)


def _why_not(base: Asset | None, tuned: Sequence[Asset]) -> str:
    if base is None or len(tuned) < 2:
        there = "no fine-tune was given" if not tuned else "only one fine-tune was given"
        return f"nothing was compared: {there}, and interference is between two or more of one base, which comes first"
    others = ", ".join(a.path for a in tuned)
    return f"nothing was compared: no tensor of {base.path} is in all of {others} as floats of the same shape"


def _common(base: Asset, tuned: Sequence[Asset]) -> list[str]:
    """Float tensors that all have, in one shape."""
    found = []
    for name, info in base.checkpoint.tensors.items():
        others = [a.checkpoint.tensors.get(name) for a in tuned]
        fits = all(o is not None and o.shape == info.shape and o.dtype.is_float for o in others)
        if info.dtype.is_float and info.size and fits:
            found.append(name)
    return found


def _sum(parts: Sequence[Conflicts]) -> Conflicts:
    return functools.reduce(lambda a, b: a + b, parts)


def _kind(name: str) -> str:
    """``self_attn.q_proj`` for the layers' tensors of that role; the name itself outside layers."""
    layer = layer_of(name)
    return (layer.role if layer is not None else name).removesuffix(".weight")


def _kinds(names: Sequence[str]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(_kind(name), []).append(name)
    return kinds


def _chosen(base: Asset, names: Sequence[str], found: Mapping[str, Conflicts], most: int) -> dict[str, list[str]]:
    """Of each kind of matrix that changed, some, evenly spaced."""
    chosen = {}
    for kind, some in _kinds(names).items():
        changed = [n for n in some if len(base.checkpoint.tensors[n].shape) == 2 and found[n].sums[2] > 0]
        places = np.unique(np.linspace(0, len(changed) - 1, min(most, len(changed))).round().astype(int))
        if len(changed) and most:
            chosen[kind] = [changed[p] for p in places]
    return chosen


def _figures(base: Asset, tuned: Sequence[Asset], total: Conflicts) -> dict[str, Any]:
    cosines, pairs = total.cosines(), total.pair_conflicts()
    above = [cosines[s][t] for s in range(len(tuned)) for t in range(s + 1, len(tuned))]
    known = [c for c in above if c is not None]
    rows = []
    for s in range(len(tuned)):
        others = [pairs[s][t] for t in range(len(tuned)) if t != s]
        rated = [p for p in others if p is not None]
        rows.append(
            {
                "norm_ratio": sqrt(total.dots[s, s] / total.base) if total.base else 0.0,
                "moved": float(total.bins[s].sum() / total.size),
                "sign_conflict": sum(rated) / len(rated) if rated else None,
                "nearest_cosine": max((c for t, c in enumerate(cosines[s]) if t != s and c is not None), default=None),
            }
        )
    return {
        "compared": len(tuned),
        "base": base.path,
        "elements": total.size,
        "sign_conflict": total.sign_conflict,
        "conflict_mass": total.conflict_mass,
        "cancelled": total.cancelled,
        "cosines": cosines,
        "mean_cosine": sum(known) / len(known) if len(known) == len(above) else None,
        "pair_conflicts": pairs,
        "nonfinite": int(total.sums[5]),
        "rows": rows,
    }


def _tops(total: Conflicts, counted: Array, common: Array, asked: float) -> dict[str, Any]:
    """``overlap[s][t]``: share of the smaller of the two sets of largest entries that lies in the other; by chance it
    would be ``share``, which is that of the sets as they are."""
    full = common + np.triu(common, 1).T
    tasks = range(len(counted))
    overlap = [
        [float(full[s, t] / min(counted[s], counted[t])) if min(counted[s], counted[t]) else None for t in tasks]
        for s in tasks
    ]
    return {"asked": asked, "share": [float(c / total.size) for c in counted], "overlap": overlap}


def _of_kind(parts: Sequence[Conflicts]) -> dict[str, Any]:
    total = _sum(parts)
    return {
        "sign_conflict": total.sign_conflict,
        "conflict_mass": total.conflict_mass,
        "cancelled": total.cancelled,
        "elements": total.size,
    }


def _angles(names: Sequence[str], studies: Mapping[str, Study]) -> dict[str, Any]:
    """Means over the pairs of the matrices looked at, which are named."""
    answers = [studies[n].answer for n in names]
    pairs = [pair for answer in answers for pair in answer["pairs"] if pair is not None]
    return {
        "matrices": list(names),
        "sampled_rows": any(answer["sampled"] for answer in answers),
        "rank": max(answer["rank"] for answer in answers),
        "shared": sum(p[0] for p in pairs) / len(pairs) if pairs else None,
        "smallest_angle": min((p[1] for p in pairs), default=None),
        "chance": sum(answer["chance"] for answer in answers) / len(answers),
    }
