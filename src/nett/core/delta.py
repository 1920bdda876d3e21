"""What it would take to have one checkpoint from another by a delta: a lossless patch, or low-rank factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import final

from nett.core.edge import Edge, Guarantee
from nett.core.moved import Movement
from nett.core.spectrum import Spectrum

ENERGY = 0.99  # share of a difference's squared norm that its low-rank factors hold


@final
@dataclass(frozen=True)
class TensorDelta:
    """From the tensor ``source`` to ``target``, which has ``nbytes`` in elements of ``itemsize``."""

    target: str
    source: str
    nbytes: int
    itemsize: int
    shape: tuple[int, ...]
    moved: Movement
    rank: Spectrum | None = None  # of the difference

    @property
    def patch(self) -> int:
        """Bytes of a lossless patch: the changed elements, and a bitmap or 32-bit gaps to say where they belong."""
        changed, size = self.moved.changed, self.moved.size
        return changed * self.itemsize + min(-(-size // 8), 4 * changed)

    @property
    def factors(self) -> tuple[int, float] | None:
        """Bytes of two low-rank factors, and the squared error that they leave; None where there is no such rank."""
        found = self.rank.rank_for(ENERGY) if self.rank else None
        if found is None:
            return None
        rank, error = found
        return rank * sum(self.shape) * self.itemsize, error**2 * self.moved.distance


@final
@dataclass(frozen=True)
class DeltaEdge:
    """An edge for a whole checkpoint, and the same for each of its tensors."""

    edge: Edge
    parts: tuple[Edge, ...]


def delta_edges(target: str, source: str, deltas: Sequence[TensorDelta]) -> list[DeltaEdge]:
    """The deltas worth having, each as one edge; bytes are computed from what a delta must hold, not written.

    A patch gives back every bit, so it is ``exact``; low-rank factors are ``measured``.
    """
    found = [_edge("sparse_delta", target, source, [(d, d.patch, None) for d in deltas])]
    low: list[tuple[TensorDelta, int, float | None]] = []
    for delta in deltas:
        factors = delta.factors
        low.append(
            (delta, *factors) if factors is not None and factors[0] < delta.patch else (delta, delta.patch, None)
        )
    if any(lost is not None for _, _, lost in low):
        found.append(_edge("low_rank_delta", target, source, low))
    return [f for f in found if f is not None]


def _edge(
    kind: str, target: str, source: str, costs: Sequence[tuple[TensorDelta, int, float | None]]
) -> DeltaEdge | None:
    """``costs``: each tensor with the bytes of its delta, and the squared error that factors leave; None: a patch.

    Factors that seem to leave none are measured all the same: their error was rounded away, and they will be too.
    """
    worth = [(d, d.nbytes - cost, lost) for d, cost, lost in costs if cost < d.nbytes]
    freed = sum(saved for _, saved, _ in worth)
    if freed <= 0:
        return None
    norm = sum(d.moved.b_square for d, _, _ in costs)
    parts = tuple(
        Edge(kind, d.target, (d.source,), None, saved, None, *_loss(lost, d.moved.b_square)) for d, saved, lost in worth
    )
    factored = [lost for _, _, lost in worth if lost is not None]
    whole = _loss(sum(factored) if factored else None, norm)
    return DeltaEdge(Edge(kind, target, (source,), None, freed, None, *whole), parts)


def _loss(lost: float | None, norm: float) -> tuple[float | None, Guarantee]:
    """Relative error and guarantee."""
    return (0.0, "exact") if lost is None else (relative_error(lost, norm), "measured")


def relative_error(lost: float, norm: float) -> float | None:
    """sqrt(lost / norm) of squared errors; None where something was lost of a target that is zero: no number
    relative to it says how much."""
    if lost == 0:
        return 0.0
    return sqrt(lost / norm) if norm else None
