"""How many directions a weight matrix really uses."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Any

from nett.core.edge import Edge
from nett.core.registry import Between, method
from nett.core.spectrum import Spectrum, spectrum
from nett.scan.protocol import Asset, Finding, Findings, Probe, Study, probe


@method(title="Effective rank", kind="measure", guarantee="measured", grain="tensor", command=True)
@probe
def effective_rank(
    assets: Sequence[Asset],
    *,
    energy: Annotated[float, Between(0, 1, open_low=True)] = 0.99,
    limit: Annotated[int, Between(16, 8192)] = 1024,
    seed: Annotated[int, Between(0)] = 0,
) -> Probe:
    """Measure the effective rank of every weight matrix, and find those that two thin factors would hold.

    A matrix whose shorter side is longer than ``limit`` is judged by a seeded sample of its rows and columns: half
    of the rows choose the directions, the other half tells what they hold.

    Formula: effective rank = exp(-sum p_i log p_i),   p_i = sigma_i / sum sigma
    Args:
        energy: share of the squared Frobenius norm that the factors must hold.
        limit: longest shorter side that is taken whole; rows of the sample otherwise.
        seed: of the sample.
    When to use: before a low-rank method, to see which matrices would bear it.
    When not: as a promise of quality; weights of full rank may act on activations of low rank.
    Guarantee: measured. The error of a finding is the relative Frobenius distance at the rank found.
    Cost: one reading of the matrices taken whole, samples of the others; an eigenvalue problem each.
    Source: Roy and Vetterli 2007, definition of the effective rank.
    """
    matrices = [
        (asset, name)
        for asset in assets
        for name, info in asset.checkpoint.tensors.items()
        if len(info.shape) == 2 and info.dtype.is_float and min(info.shape) > 1
    ]
    work = functools.partial(spectrum, limit=limit, seed=seed)
    studies = [Study((asset.source(name),), work) for asset, name in matrices]
    yield studies
    found: list[Finding] = []
    figures: dict[str, dict[str, Any]] = {}
    for (asset, name), study in zip(matrices, studies, strict=True):
        known: Spectrum | None = study.answer
        if known is None:
            figures[asset.label(name)] = {"nonfinite": True}
            continue
        low = known.rank_for(energy)
        figures[asset.label(name)] = {
            "effective_rank": known.effective_rank,
            "stable_rank": known.stable_rank,
            "full_rank": known.full_rank,
            "rank_99" if energy == 0.99 else f"rank_{energy:g}": low and low[0],
            "sampled": known.sampled,
        }
        edge = _edge(asset, name, low)
        if edge is not None:
            found.append(Finding(edge))
    return Findings(tuple(found), {"matrices": len(matrices), "by_matrix": figures})


def _edge(asset: Asset, name: str, low: tuple[int, float] | None) -> Edge | None:
    """Two factors of the rank found, where they are smaller than the matrix."""
    info = asset.checkpoint.tensors[name]
    freed = info.nbytes - (low[0] * sum(info.shape) * info.dtype.bytes if low else info.nbytes)
    if low is None or freed <= 0:
        return None
    return Edge("low_rank", asset.label(name), (), None, freed, None, low[1], "measured")
