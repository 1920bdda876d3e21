"""Weights as whole numbers of few bits, of several kinds, with scales from one search: what claims compare kinds by."""

from __future__ import annotations

import torch

from nett.weights.bipolar_int import nearest, scales

BIPOLAR, SIGNED, NARROW, ZERO_POINT = "bipolar", "signed", "signed without the lowest", "unsigned with a zero point"
RANGES, REFITS = 28, 3


def best(weight: torch.Tensor, bits: int, kind: str) -> torch.Tensor:
    """A matrix as numbers of so many bits, a scale a row from the same search for every kind."""
    values = weight.detach().float().unsqueeze(1)
    if kind == BIPOLAR:
        scale = scales(values, bits)
        return (nearest(values, scale, bits) * scale.unsqueeze(-1)).squeeze(1)
    if kind == ZERO_POINT:
        return _with_zero(values, bits).squeeze(1)
    low = -(2 ** (bits - 1)) + (1 if kind == NARROW else 0)
    high = 2 ** (bits - 1) - 1
    top = values.abs().amax(-1) / max(abs(low), high)
    found, least = values * 0, values.square().sum(-1)

    def take(scale: torch.Tensor) -> torch.Tensor:
        nonlocal found, least
        made = (values / scale.unsqueeze(-1)).round().clamp(low, high) * scale.unsqueeze(-1)
        error = (made - values).square().sum(-1)
        better = error < least
        found, least = made.where(better.unsqueeze(-1), found), error.where(better, least)
        return scale.where(better, kept)

    kept = top
    for k in range(RANGES):
        kept = take(top * 0.93**k)
    for _ in range(REFITS):
        codes = (values / kept.unsqueeze(-1)).round().clamp(low, high)
        fitted = (values * codes).sum(-1) / codes.square().sum(-1).clamp(min=1e-30)
        kept = take(fitted.where(fitted > 0, kept))
    return found.squeeze(1)


def _with_zero(values: torch.Tensor, bits: int) -> torch.Tensor:
    """All 2^bits numbers from a row's least to its largest, and of 28 narrower ranges the best."""
    low, high, most = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True), 2**bits - 1
    found, least = values * 0, values.square().sum(-1, keepdim=True)
    for k in range(RANGES):
        step = (high - low) * 0.93**k / most
        zero = (-low * 0.93**k / step).round().clamp(0, most)
        made = ((values / step + zero).round().clamp(0, most) - zero) * step
        error = (made - values).square().sum(-1, keepdim=True)
        found, least = made.where(error < least, found), error.where(error < least, least)
    return found
