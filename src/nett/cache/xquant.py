"""XQuant (P65): what keys and values are made of is rounded and held in their place; they are made again at every step."""

from __future__ import annotations

from typing import Annotated

from nett.cache.packing import coded, dividing
from nett.cache.protocol import Hidden, Tensor
from nett.core.registry import Between, method


@method(papers=["P65"], title="XQuant", kind="serve", grain="block", extra="models")
def xquant(
    hidden: Tensor,
    key_basis: Tensor | None,
    value_basis: Tensor | None,
    *,
    bits: Annotated[int, Between(2, 8)] = 4,
    group: Annotated[int, Between(8)] = 32,
    residual: Annotated[int, Between(0)] = 32,
) -> Hidden:
    """Hold the input X of the projections as whole numbers; with fewer key heads than query heads, X in the directions that
    keys depend on and in those that values depend on.

    Formula: K = RoPE(X W_k), V = X W_v from X ~ low + scale * q;  W_k = U_k S B': hold X U_k and X U_v, K = RoPE(X U_k S B')
    Args:
        bits: of a number; 2, 3, 4 or 8 waste none.
        group: channels of a token that share a scale (of X and X U_v; at most as many as divide the width), and tokens of
            a channel (of X U_k). The paper's 128 takes fewer bytes.
        residual: last tokens whose X stays as it is.
    When to use: as many key heads as query heads: X is half of K and V before any rounding.
    When not: time matters more than memory. With grouped heads it holds as many numbers as the cache itself.
    Cost: queries, keys and values of all held tokens are computed again at every step, with grouped heads twice; a step
        takes time in proportion to tokens times the projections' size.
    Source: P65, sections 3.1 and 3.2.
    """
    return inputs(hidden, key_basis, value_basis, bits, group)


def inputs(hidden: Tensor, key_basis: Tensor | None, value_basis: Tensor | None, bits: int, group: int) -> Hidden:
    """X as codes, or both of its latents where there are bases."""
    if key_basis is None or value_basis is None:
        return Hidden((coded(hidden, bits, dividing(hidden.shape[-1], group), -1),))
    keys, values = hidden @ key_basis, hidden @ value_basis
    return Hidden((coded(keys, bits, group, -2), coded(values, bits, dividing(values.shape[-1], group), -1)))
