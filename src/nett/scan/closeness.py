"""How near fine-tunes lie to their base, and to each other."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from math import sqrt
from typing import Annotated, Any

from nett.core.delta import TensorDelta, delta_edges, relative_error
from nett.core.edge import Edge
from nett.core.moved import Difference, Moved, Movement
from nett.core.registry import Between, method
from nett.core.spectrum import spectrum
from nett.core.sweep import Pass
from nett.scan.crowd import MASK_LAMBDA, Crowd, Crowded
from nett.scan.protocol import Asset, Finding, Findings, Probe, Study, probe


@method(papers=["P10"], title="Closeness to a base", kind="measure", guarantee="measured", command=True)
@probe
def closeness(
    assets: Sequence[Asset],
    *,
    shared: Annotated[float, Between(0, 1)] = 0.5,
    near: Annotated[float, Between(0)] = 0.5,
) -> Probe:
    """Measure how far checkpoints lie from the first one: density, norms, signs and rank of the difference.

    A fine-tune near its base can be kept as a delta. The bytes of two deltas are worked out: a lossless patch (new
    values of the elements that changed, and where they are), and low-rank factors that hold 99 % of each matrix's
    difference. Between several fine-tunes: where they pull in opposite directions, which is what merging suffers
    from, and what TALL-masks would lose.

    Args:
        shared: a checkpoint is compared if at least this share of its bytes has names and shapes of the base.
        near: a checkpoint counts as a fine-tune, for what several of them could share, if the norm of its difference
            is at most this share of the base's norm.
    When to use: with --base, or on several checkpoints of one family, the base first.
    When not: on unrelated models; nothing is found there.
    Guarantee: exact for patches, measured for the rest. Norms, counts and errors are of every element; bytes are
        computed, not written.
    Cost: one reading of each checkpoint; matrices that changed are read again for their rank.
    Source: P10 (interference of signs, section 3), P04 (equations 3 and 4).
    """
    base, others = (assets[0], [a for a in assets[1:] if _share(assets[0], a) >= shared]) if assets else (None, [])
    if base is None or not others:
        yield []
        return Findings(figures={"compared": 0})
    names = {tuned: _names(base, tuned) for tuned in others}
    everywhere = [
        n for n in base.checkpoint.tensors if all(n in names[t] for t in others) and _is_float(n, base, others)
    ]
    moved = {(t, n): _moved(base, t, n) for t in others for n in names[t]}
    crowd = {n: _crowd_pass(base, others, n) for n in everywhere} if len(others) > 1 else {}
    yield [*moved.values(), *crowd.values()]
    rough = [key for key, one in moved.items() if one.answer.distance > 0 and len(_info(*key).shape) == 2]
    ranks = {(t, n): Study((Difference(base.source(n), t.source(n)),), spectrum) for t, n in rough}
    yield list(ranks.values())

    found: list[Finding] = []
    figures: dict[str, Any] = {"compared": len(others), "base": base.path}
    totals: dict[Asset, Movement] = {}
    for tuned in others:
        deltas = [
            TensorDelta(
                tuned.label(n), base.label(n), info.nbytes, info.dtype.bytes, info.shape, moved[tuned, n].answer, rank
            )
            for n in names[tuned]
            for info in [_info(tuned, n)]
            for rank in [ranks[tuned, n].answer if (tuned, n) in ranks else None]
        ]
        found += [Finding(d.edge, d.parts) for d in delta_edges(tuned.path, base.path, deltas)]
        totals[tuned] = sum((d.moved for d in deltas), Movement())
        figures[tuned.path] = _figures(totals[tuned], deltas)
    if crowd:
        together = _total([one.answer for one in crowd.values() if one.answer is not None], len(others))
        figures["sign_conflict"] = together.conflict
        for place, tuned in enumerate(others):
            figures[tuned.path]["agrees_with_elected_sign"] = together.agreement(place)
        same = all(len(everywhere) == len(a.checkpoint.tensors) for a in (base, *others))
        if same and all(moved.distance <= near**2 * moved.a_square for moved in totals.values()):
            found += _multi_task(base, others, together, totals)
    return Findings(tuple(found), figures)


def _info(asset: Asset, name: str) -> Any:
    return asset.checkpoint.tensors[name]


def _names(base: Asset, tuned: Asset) -> list[str]:
    known = base.checkpoint.tensors
    return [n for n, t in tuned.checkpoint.tensors.items() if n in known and known[n].shape == t.shape and t.size]


def _share(base: Asset, tuned: Asset) -> float:
    whole = tuned.checkpoint.nbytes
    return sum(_info(tuned, n).nbytes for n in _names(base, tuned)) / whole if whole else 0.0


def _is_float(name: str, base: Asset, others: Sequence[Asset]) -> bool:
    return all(_info(a, name).dtype.is_float for a in (base, *others))


def _moved(base: Asset, tuned: Asset, name: str) -> Pass:
    return Pass((base.source(name), tuned.source(name)), Moved(_info(base, name).dtype, _info(tuned, name).dtype))


def _crowd_pass(base: Asset, others: Sequence[Asset], name: str) -> Pass:
    return Pass(tuple(a.source(name) for a in (base, *others)), Crowd([_info(a, name).dtype for a in (base, *others)]))


def _total(answers: Sequence[Crowded], tasks: int) -> Crowded:
    import numpy as np

    return sum(answers, Crowded(np.zeros((tasks + 1, 2), np.int64), np.zeros(tasks)))


def _figures(moved: Movement, deltas: Sequence[TensorDelta]) -> dict[str, Any]:
    ranked = [d for d in deltas if d.rank is not None]
    weight = sum(d.moved.distance for d in ranked)
    share = sum(d.moved.distance * d.rank.effective_rank / d.rank.full_rank for d in ranked if d.rank is not None)
    return {
        "delta_density": moved.density,
        "norm_ratio": sqrt(moved.distance / moved.a_square) if moved.a_square else None,
        "cosine": moved.cosine,
        "sign_agreement": moved.sign_agreement,
        "effective_rank_share": share / weight if weight else None,  # of the full rank, weighted by ||delta||^2
        "rank_sampled": any(d.rank.sampled for d in ranked if d.rank is not None),
        "nonfinite": moved.nonfinite,
    }


def _multi_task(
    base: Asset, others: Sequence[Asset], together: Crowded, totals: dict[Asset, Movement]
) -> list[Finding]:
    """Every fine-tune from the base, one vector shared by all, and a bit for each element (P04)."""
    paths = " ".join(shlex.quote(a.path) for a in others)
    command = f"nett merge tall_masks --base {shlex.quote(base.path)} {paths} --mask-lambda {MASK_LAMBDA} --out OUT"
    found = []
    for place, tuned in enumerate(others):
        if totals[tuned].nonfinite:  # no mask gives a NaN back
            continue
        error = relative_error(float(together.lost[place]), totals[tuned].b_square)
        parts = tuple(
            _multi_task_edge(
                tuned.label(n), base.label(n), t.nbytes - t.nbytes // len(others) - -(-t.size // 8), error, command
            )
            for n, t in tuned.checkpoint.tensors.items()
        )
        parts = tuple(p for p in parts if p.bytes_freed)
        freed = sum(p.bytes_freed for p in parts)
        if freed > 0:
            found.append(Finding(_multi_task_edge(tuned.path, base.path, freed, error, command), parts))
    return found


def _multi_task_edge(target: str, source: str, freed: int, error: float | None, command: str) -> Edge:
    return Edge(
        "multi_task_vector", target, (source,), "merge/tall_masks", max(0, freed), None, error, "measured", command
    )
