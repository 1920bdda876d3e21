"""Which unit is kept as a difference to which: likeness from headers and samples, the choice by the planner.

Source: Wang et al. 2026, ZipLLM (NSDI 26), for families found by their bits; here by the entropy that a sample of the
difference has. Bhattacherjee et al. 2015 (PVLDB 8(12)), problem 6, for the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from nett.core.codec import BLOCK, Mode, choose_mode
from nett.core.dtypes import Array
from nett.core.edge import Edge
from nett.core.errors import ProofFailed
from nett.core.retention import Limits, Retention, plan_retention
from nett.store.records import Part

SAMPLE = 1 << 16  # bytes of a tensor that are looked at
TENSORS = 24  # of a model, the largest
ALIKE = 0.9  # share of a model's bytes that must have name and size in common with its base
NEAREST = 8  # bases that the planner may choose from
WORTH = 0.95  # a difference must be smaller than this share of the tensor coded by itself
PLAIN_RATE, DELTA_RATE = 400e6, 250e6  # bytes decoded a second, on the safe side

Sampler = Callable[[Part], Array]  # the same bytes of every tensor of one size


@final
@dataclass(frozen=True)
class Known:
    """A unit of a model as the planner sees it. ``nbytes``: of the whole model, which a limit on seconds speaks of;
    ``hops``: the differences that it rests on as it lies in the store."""

    name: str
    tensors: Mapping[str, Part]
    nbytes: int
    sample: Sampler
    hops: int = 0


def sample_place(nbytes: int) -> tuple[int, int]:
    """(offset, count) of the bytes of a tensor that are sampled: in its middle block, whole elements."""
    start = nbytes // BLOCK // 2 * BLOCK
    return start, min(SAMPLE, (nbytes - start) // 8 * 8)


def best_mode(raw: Array, width: int, nbytes: int, base: Array | None = None) -> tuple[Mode, float]:
    """As :func:`choose_mode` for a tensor of ``nbytes``; all element sizes that fit are tried where ``width`` is 0."""
    sizes = [w for w in ((width,) if width else (2, 4, 1)) if nbytes % w == 0] or [1]
    return min((choose_mode(raw, w, base) for w in sizes), key=lambda found: found[1])


def largest(tensors: Mapping[str, Part]) -> list[str]:
    return sorted(tensors, key=lambda n: (-tensors[n].nbytes, n))[:TENSORS]


def common(model: Known, base: Known) -> list[str]:
    """The tensors that both have, by name and size."""
    return [n for n, p in model.tensors.items() if n in base.tensors and base.tensors[n].nbytes == p.nbytes]


def own_bytes(model: Known) -> int:
    """An estimate of the model's bytes in the store, coded by itself."""
    return round(sum(p.nbytes for p in model.tensors.values()) * _share(model, largest(model.tensors), None))


def delta_bytes(model: Known, base: Known, own: int) -> int | None:
    """An estimate of its bytes as a difference to ``base``; None where the two are not alike."""
    names = common(model, base)
    shared = sum(model.tensors[n].nbytes for n in names)
    total = sum(p.nbytes for p in model.tensors.values())
    if not shared or shared < ALIKE * total:
        return None
    moved = {n: model.tensors[n] for n in names if model.tensors[n].object != base.tensors[n].object}
    changed = sum(p.nbytes for p in moved.values())
    return round(changed * _share(model, largest(moved), base) + own * (total - shared) / total) if moved else 0


def _share(model: Known, names: Sequence[str], base: Known | None) -> float:
    """Coded bytes a byte of the named tensors, from samples, weighted by their sizes."""
    weighted = total = 0.0
    for name in names:
        part = model.tensors[name]
        raw = model.sample(part)
        if not raw.size:
            continue
        ground = base.sample(base.tensors[name]) if base is not None else None
        _, bits = best_mode(raw, part.width, part.nbytes, ground)
        weighted += part.nbytes * bits / 8
        total += part.nbytes
    return weighted / total if total else 1.0


def choose_bases(
    drafts: Sequence[Known], stored: Sequence[Known], max_seconds: float | None
) -> tuple[dict[str, str], Retention]:
    """Unit -> the unit that it is kept as a difference to, and the plan with its bound.

    Minimum storage under a limit on the seconds that restoring any one model takes (the retention problem).
    """
    own = {d.name: own_bytes(d) for d in drafts}
    seconds = float("inf") if max_seconds is None else max_seconds
    arcs: list[tuple[Known, Known, int]] = []
    for draft in drafts:
        found = []
        for base in (*stored, *drafts):
            try:
                nbytes = delta_bytes(draft, base, own[draft.name]) if base is not draft else None
            except ProofFailed:  # it is damaged; nett store check says so
                continue
            if nbytes is not None and nbytes < WORTH * own[draft.name]:
                found.append((draft, base, nbytes))
        arcs += sorted(found, key=lambda arc: arc[2])[:NEAREST]
    longest = _largest_of_family(arcs)
    edges = [
        Edge("delta", draft.name, (base.name,), "store/add", own[draft.name] - nbytes,
             longest[draft.name] * (1 + base.hops) / DELTA_RATE, 0.0, "exact")
        for draft, base, nbytes in arcs
    ]  # fmt: skip
    plain = max((d.nbytes / PLAIN_RATE for d in drafts), default=0.0)
    sizes = {**{s.name: 0 for s in stored}, **own}
    plan = plan_retention(sizes, edges, Limits(seconds=max(0.0, seconds - plain), hops=float("inf")))
    return {e.target: e.sources[0] for e in plan.taken}, plan


def _largest_of_family(arcs: Sequence[tuple[Known, Known, int]]) -> dict[str, int]:
    """For every draft, the bytes of the largest model that a chain of its could end in: on the way to a model every
    difference is walked over all its bytes, so none may be reckoned by the bytes of a smaller one."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for draft, base, _ in arcs:
        parent[root(base.name)] = root(draft.name)
    found: dict[str, int] = {}
    for draft, _, _ in arcs:
        found[root(draft.name)] = max(found.get(root(draft.name), 0), draft.nbytes)
    return {draft.name: found[root(draft.name)] for draft, _, _ in arcs}


def in_order(names: Sequence[str], bases: Mapping[str, str]) -> list[str]:
    """Every model behind the one that it is a difference to."""
    done: dict[str, None] = {}

    def visit(name: str) -> None:
        chain = [name]
        while bases.get(chain[-1]) in names and bases[chain[-1]] not in done:
            chain.append(bases[chain[-1]])
        for one in reversed(chain):
            done.setdefault(one)

    for name in names:
        visit(name)
    return [n for n in done if n in names]


def sampled(read: Callable[[int, int], Array], nbytes: int) -> Array:
    """The sample of a tensor that ``read(offset, count)`` reads."""
    offset, count = sample_place(nbytes)
    return read(offset, count) if count else np.empty(0, np.uint8)
