"""Keys rounded along tokens, values along channels, the last tokens left as they are (KIVI)."""

from __future__ import annotations

from typing import Annotated

from nett.cache.packing import coded
from nett.cache.protocol import Coded, Tensor
from nett.core.registry import Between, method


@method(papers=[], title="Keys by channel, values by token (KIVI)", kind="serve", grain="block", extra="models")
def kivi(
    keys: Tensor,
    values: Tensor,
    *,
    bits: Annotated[int, Between(2, 8)] = 4,
    group: Annotated[int, Between(8)] = 32,
    residual: Annotated[int, Between(0)] = 32,
) -> Coded:
    """Hold keys and values as whole numbers, a scale for each group: of keys along the tokens, of values along the channels.

    Formula: x ~ low + scale * q, q = round((x - low) / scale), scale = (high - low) / (2^bits - 1)
    Args:
        bits: of a number; 2, 3, 4 or 8 waste none.
        group: tokens (of keys) or channels (of values) that share a scale; at most as many channels as a head has.
        residual: last tokens that stay as they are.
    When to use: every token may matter, and the bytes must be fewer.
    When not: a fifth of the bytes or less: tokens must go.
    Cost: codes are turned into numbers again at every step. A token is rounded once, never again.
    Source: Liu et al. 2024, arXiv:2402.02750; chunks of `group` tokens are rounded when they leave the residual.
    """
    width = min(group, int(values.shape[-1]))
    return Coded(coded(keys, bits, group, -2), coded(values, bits, width, -1))
