"""AWQ: rounding to nearest after the inputs that matter most were given a finer grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from nett.core.registry import Between, method
from nett.weights.grid import group_for, nearest, scales
from nett.weights.protocol import Quantised, Scaled, Tensor
from nett.weights.scaling import around_one, positive, tied

_FINALISTS = 4  # scales that are judged with searched ranges; the others with whole ones


@method(papers=[], title="AWQ, activation-aware weight quantisation", grain="block")
def awq(
    weights: Sequence[Tensor],
    gram: Tensor,
    magnitudes: Tensor,
    source: Tensor | None,
    *,
    bits: Annotated[int, Between(2, 8)] = 4,
    group: Annotated[int, Between(-1)] = 0,
    symmetric: bool = True,
    grid: Annotated[int, Between(1, 1000)] = 20,
    search: bool = True,
) -> list[Quantised] | Scaled:
    """Multiply the columns whose inputs are large, divide those inputs in the tensor before, and round to nearest.

    Formula: s_j = mean|x_j|^a / mean_i|w_ij|^b;  W s ~ rounded;  least tr(E G E^T), E = rounded / s - W, over a and b
    Args:
        bits: bits of a weight.
        group: neighbouring columns that share a scale; 0 for the largest of 128, 64 and 32 that divides all layers,
            -1 for one scale a row.
        symmetric: numbers around zero; otherwise each group has a zero point as well.
        grid: exponents a that are tried, from 0 (nothing is scaled) to 1; each with b = 0 and with b = 1 - a.
        search: of 29 ranges for each group take the one with the least error, each column weighed by its mean square.
    When to use: 4 bits, for models that are run on other text than they were calibrated with: gptq fits it closer.
    When not: 2 and 3 bits: gptq. Layers with nothing before them that takes up a scale are rounded unscaled, and counted.
    Cost: two passes of the calibration text through each block; the search sees the inputs' second moments only.
    Source: Lin et al. 2023, arXiv:2306.00978, equations 4 and 5; the error is that of the outputs on all of the text.
    """
    width = group_for(gram.shape[0], group)

    def rounded(scale: Tensor | None, fine: bool) -> list[Quantised]:
        weigh = gram.diagonal() if scale is None else gram.diagonal() / scale.square()
        found = []
        for weight in weights:
            scaled = weight if scale is None else (weight.float() * scale).to(weight.dtype)
            grid = scales(scaled, width, bits, symmetric=symmetric, weigh=weigh, search=fine)
            found.append(nearest(scaled, *grid, bits))
        return found

    def error(answers: Sequence[Quantised], scale: Tensor | None) -> float:
        total = 0.0
        for weight, answer in zip(weights, answers, strict=True):
            value = answer.dense().float()
            gap = (value if scale is None else value / scale) - weight.float()
            total += float(((gap @ gram) * gap).sum())
        return total

    tried: list[tuple[float, Tensor]] = []
    if source is not None:
        for scale in _candidates(weights, magnitudes, source, grid):
            tried.append((error(rounded(scale, False), scale), scale))
        tried = sorted(tried, key=lambda one: one[0])[:_FINALISTS]
    finals: list[tuple[Tensor | None, list[Quantised]]] = [
        (scale, rounded(scale, fine)) for scale in (None, *(s for _, s in tried)) for fine in {search, False}
    ]
    chosen, answers = min(finals, key=lambda one: error(one[1], one[0]))
    return answers if chosen is None else Scaled(answers, chosen)


def _candidates(weights: Sequence[Tensor], magnitudes: Tensor, source: Tensor, grid: int) -> Iterator[Tensor]:
    import torch

    inputs = tied(positive(magnitudes), source)
    rows = sum(len(w) for w in weights)
    total = torch.stack([w.float().abs().sum(0) for w in weights]).sum(0)
    columns = tied(positive(total / rows), source)
    for step in range(1, grid + 1):
        power = step / grid
        yield around_one(inputs**power)
        if step < grid:
            yield around_one(inputs**power / columns ** (1 - power))
