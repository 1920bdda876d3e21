"""The slots with the highest scores, among others that stay whatever their scores."""

from __future__ import annotations

from nett.cache.protocol import Kept, Tensor


def best(scores: Tensor, keep: int, *, sinks: int = 0, recent: int = 0) -> Kept:
    """Of ``[h, n]`` scores the ``keep`` highest of each head (of equal ones the later), ascending; the first ``sinks``
    and the last ``recent`` slots before all others, as far as there is room: the last first."""
    count = scores.shape[1]
    ranked = scores.float().clone()
    high = ranked.new_tensor(float("inf"))
    if sinks:
        ranked[:, :sinks] = high
    if recent:
        ranked[:, max(0, count - recent) :] = high
    order = ranked.flip(1).argsort(dim=1, descending=True, stable=True)[:, :keep]
    return Kept((count - 1 - order).sort(dim=1).values)
