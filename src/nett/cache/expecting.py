"""Queries that are still to come, from those that came: their mean and covariance before rotation, and the mean rotation of
the positions ahead.

Rotations are the model's own: its module of rotations gives cosines and sines, its ``apply_rotary_pos_emb`` applies them
(to the first channels, where only some are rotated). Both are linear in cosines and sines, so that a mean rotation is that
of their means.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from nett.core.errors import Refused

if TYPE_CHECKING:
    from nett.cache.watching import Coming

Sums = tuple[Any, Any, Any]  # of queries [b, hq, d], of their outer products [b, hq, d, d], and how many [b]


def added(sums: Sums | None, query: Any, coming: Coming, real: Any, before: Any, sinks: int) -> Sums:
    """``sums`` with queries ``[b, hq, q, d]`` as they were before rotation. real: bool ``[b, q]`` or None where none is
    padding; before: tokens of each row that came earlier, int or ``[b]``. The first ``sinks`` tokens do not count."""
    import torch

    rows, _, count, _ = query.shape
    there = query.new_ones(rows, count) if real is None else real.to(query.dtype)
    number = there.cumsum(-1) + (before[:, None] if isinstance(before, torch.Tensor) else before)
    weight = there * (number > sinks)
    plain = turned(coming, query, inverse=True).float()
    part = plain * weight[:, None, :, None]
    found = part.sum(2), part.transpose(2, 3) @ plain, weight.float().sum(-1)
    return found if sums is None else (sums[0] + found[0], sums[1] + found[1], sums[2] + found[2])


def ahead_of(sums: Sums, coming: Coming, ahead: int) -> tuple[Any, Any]:
    """Mean ``[b, hq, d]`` and covariance ``[b, hq, d, d]`` of queries at the next ``ahead`` positions, from rows' sums."""
    import torch

    total, outer, count = sums
    share = count.clamp(min=1)[:, None, None]
    mean = total / share
    spread = outer / share[..., None] - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    if coming.positions is None or coming.way.rotary is None:
        return mean, spread
    places = coming.positions[:, -1:].long() + 1 + torch.arange(ahead, device=mean.device)
    cos, sin = (t.float().mean(1, keepdim=True) for t in coming.way.rotary.forward(mean, places))
    once = rotated(coming.way.module, spread, cos, sin).transpose(2, 3)
    return rotated(coming.way.module, mean.unsqueeze(2), cos, sin).squeeze(2), rotated(
        coming.way.module, once, cos, sin
    )


def turned(coming: Coming, states: Any, *, inverse: bool = False) -> Any:
    """``[b, h, q, d]`` rotated as the tokens that come are, or back."""
    if coming.positions is None or coming.way.rotary is None:
        return states
    cos, sin = coming.rotation or coming.way.rotary.forward(states, coming.positions.long())
    if inverse:
        square = cos * cos + sin * sin  # more than 1 where the model scales its rotations
        cos, sin = cos / square, -sin / square
    return rotated(coming.way.module, states, cos, sin)


def rotated(module: Any, states: Any, cos: Any, sin: Any) -> Any:
    """``[b, h, q, d]`` by the attention module's own function, at ``cos`` and ``sin`` ``[1 or b, q, up to d]``."""
    import torch

    apply = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    if apply is None:
        raise Refused(
            f"{type(module).__name__} rotates its queries in a way of its own, so that they cannot be told ahead"
        )
    some, width = states[..., : cos.shape[-1]], cos.shape[-1]
    found = apply(some, some, cos, sin)[0]
    return found if width == states.shape[-1] else torch.cat([found, states[..., width:]], -1)
