"""What changed from checkpoint A to checkpoint B: tensor by tensor, layer by layer, and what a delta would take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

from nett.core.checkpoint import Checkpoint, TensorInfo
from nett.core.delta import ENERGY, TensorDelta, delta_edges
from nett.core.edge import Edge, ranked
from nett.core.jsonable import jsonable
from nett.core.layers import layer_of, module_of
from nett.core.moved import Difference, Moved, Movement
from nett.core.progress import report
from nett.core.runner import Pool, thread_count
from nett.core.spectrum import Spectrum, spectrum
from nett.core.sweep import Pass, Source, sweep

Status = Literal["same", "moved", "retyped", "reshaped", "only_a", "only_b"]


@final
@dataclass(frozen=True)
class TensorDiff:
    """One tensor name. ``moved`` is None where there are not two tensors of one shape."""

    name: str
    status: Status
    a: TensorInfo | None
    b: TensorInfo | None
    moved: Movement | None = None
    rank: Spectrum | None = None  # of b - a, for matrices that moved

    @property
    def relative(self) -> float:
        return self.moved.relative if self.moved else 0.0

    def as_json(self) -> dict[str, Any]:
        def side(info: TensorInfo | None) -> dict[str, Any] | None:
            return info and {"dtype": info.stored, "shape": list(info.shape), "bytes": info.nbytes}

        record: dict[str, Any] = {"name": self.name, "status": self.status, "a": side(self.a), "b": side(self.b)}
        low = self.rank.rank_for(ENERGY) if self.rank else None
        return (
            record
            | _figures(self.moved)
            | {
                "effective_rank": self.rank and self.rank.effective_rank,
                "rank_99": low and low[0],
                "rank_sampled": self.rank and self.rank.sampled,
            }
        )


def _figures(moved: Movement | None) -> dict[str, Any]:
    return {
        "relative_l2": moved and moved.relative,
        "max_abs": moved and moved.largest,
        "density": moved and moved.density,
        "cosine": moved and moved.cosine,
        "sign_changes": moved and moved.flips,
        "sign_agreement": moved and moved.sign_agreement,
        "nonfinite": moved and moved.nonfinite,
    }


@final
@dataclass(frozen=True)
class LayerDiff:
    """All tensors of a layer, or of a module outside the layers, together."""

    name: str
    tensors: int
    nbytes: int
    moved: Movement

    def as_json(self) -> dict[str, Any]:
        return {"layer": self.name, "tensors": self.tensors, "bytes": self.nbytes} | _figures(self.moved)


@final
@dataclass(frozen=True)
class Diff:
    """The whole comparison. ``edges``: how B can be had from A."""

    a: str
    b: str
    tensors: tuple[TensorDiff, ...]  # largest relative change first
    layers: tuple[LayerDiff, ...]  # in the model's order
    edges: tuple[Edge, ...]
    bytes_a: int
    bytes_b: int
    total: Movement = field(default_factory=Movement)

    @property
    def identical(self) -> bool:
        """The same tensors with the same bits (types and shapes included)."""
        return all(t.status == "same" for t in self.tensors)

    def as_json(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "identical": self.identical,
            "bytes_a": self.bytes_a,
            "bytes_b": self.bytes_b,
            "total": jsonable(_figures(self.total)),
            "tensors": [jsonable(t.as_json()) for t in self.tensors],
            "layers": [jsonable(x.as_json()) for x in self.layers],
            "edges": [e.as_json() for e in self.edges],
        }


def diff(
    a: Checkpoint,
    b: Checkpoint,
    *,
    names: tuple[str, str] | None = None,
    threads: int = 0,
    ranks: bool = True,
    on_bytes: Callable[[int], None] = report.step,
) -> Diff:
    """Compare two open checkpoints; ``names`` is how they are called in the result (their paths by default).

    Reads both once, and the matrices that moved a second time for the rank of their difference (``ranks``).
    """
    called = names or (str(a.path), str(b.path))
    pairs = [n for n in a.tensors if n in b.tensors and a.tensors[n].shape == b.tensors[n].shape]
    passes = [_moved_pass(a, b, name) for name in pairs]
    pool = Pool(thread_count(threads))
    try:
        sweep(passes, pool, on_bytes)
        moved = dict(zip(pairs, (p.answer for p in passes), strict=True))
        rough = [n for n in pairs if ranks and len(a.tensors[n].shape) == 2 and moved[n].distance > 0]
        differences = [Difference(Source(a, a.tensors[n]), Source(b, b.tensors[n])) for n in rough]
        found = dict(zip(rough, pool.ordered(spectrum, differences), strict=True))
    finally:
        pool.close()
    rows = [_tensor(a.tensors.get(n), b.tensors.get(n), moved.get(n), found.get(n)) for n in {**a.tensors, **b.tensors}]
    layers, total = _layers(rows)
    return Diff(
        *called,
        tensors=tuple(sorted(rows, key=_rank_of_interest)),
        layers=tuple(layers),
        edges=tuple(_edges(called, rows)),
        bytes_a=a.nbytes,
        bytes_b=b.nbytes,
        total=total,
    )


def _moved_pass(a: Checkpoint, b: Checkpoint, name: str) -> Pass:
    left, right = a.tensors[name], b.tensors[name]
    return Pass((Source(a, left), Source(b, right)), Moved(left.dtype, right.dtype))


def _tensor(a: TensorInfo | None, b: TensorInfo | None, moved: Movement | None, rank: Spectrum | None) -> TensorDiff:
    known = a or b
    assert known is not None
    status: Status
    if a is None or b is None:
        status = "only_b" if a is None else "only_a"
    elif moved is None:
        status = "reshaped"
    else:
        status = "moved" if moved.changed else "same" if a.stored == b.stored else "retyped"
    return TensorDiff(known.name, status, a, b, moved, rank)


def _rank_of_interest(row: TensorDiff) -> tuple[int, float, str]:
    """What cannot be compared first, then by relative change."""
    return (0 if row.moved is None else 1), -row.relative, row.name


def _layers(rows: Sequence[TensorDiff]) -> tuple[list[LayerDiff], Movement]:
    groups: dict[str, list[TensorDiff]] = {}
    for row in rows:
        if row.moved is not None:
            groups.setdefault(module_of(row.name), []).append(row)

    def place(name: str) -> tuple[bool, str, int]:
        found = layer_of(name)
        return (found is None, found.stack, found.number) if found else (True, name, 0)

    total = Movement()
    layers = []
    for name in sorted(groups, key=place):
        moved = Movement()
        for row in groups[name]:
            assert row.moved is not None
            moved = moved + row.moved
        total = total + moved
        layers.append(LayerDiff(name, len(groups[name]), sum(r.b.nbytes for r in groups[name] if r.b), moved))
    return layers, total


def _edges(called: tuple[str, str], rows: Sequence[TensorDiff]) -> list[Edge]:
    """B from A: as a whole where they are equal, else by a delta."""
    a, b = called
    if all(r.status == "same" for r in rows):
        nbytes = sum(r.b.nbytes for r in rows if r.b)
        return [Edge("duplicate_checkpoint", b, (a,), None, nbytes, 0.0, 0.0, "exact")]
    deltas = [
        TensorDelta(f"{b}::{r.name}", f"{a}::{r.name}", r.b.nbytes, r.b.dtype.bytes, r.b.shape, r.moved, r.rank)
        for r in rows
        if r.moved is not None and r.b is not None
    ]
    return ranked(found.edge for found in delta_edges(b, a, deltas))
