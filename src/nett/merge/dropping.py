"""Dropping random entries of task vectors and rescaling what stays: the first half of DARE."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Literal

from nett.core.dtypes import Array
from nett.core.passes import Uniform
from nett.merge.norms import same_l1

Rescale = Literal["inverse-density", "l1", "none"]


def drop_and_rescale(
    deltas: Sequence[Array], densities: Sequence[float], *, rescale: Rescale, seed: int
) -> Generator[Sequence[Any], list[Any], list[Array]]:
    """Keep each entry with probability ``density``; which ones depends on seed, model and position only.

    ``inverse-density`` multiplies by 1/density (DARE, equation 2); ``l1`` by the ratio of the tensor's L1 norms
    before and after, as mergekit does; ``none`` leaves the kept entries as they are.
    """
    draws = yield [Uniform(d.size, seed, stream) for stream, d in enumerate(deltas)]
    kept = [
        d if density >= 1 else d * (draw < density) for d, draw, density in zip(deltas, draws, densities, strict=True)
    ]
    if rescale == "inverse-density":
        return [k * k.dtype.type(1 / p) if 0 < p < 1 else k for k, p in zip(kept, densities, strict=True)]
    if rescale == "l1":
        kept = yield from same_l1(deltas, kept)
    return kept
