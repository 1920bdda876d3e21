"""XQuant-CL (P65): of most layers only what their input adds to that of the layer before is held, as few bits."""

from __future__ import annotations

from typing import Annotated, Literal

from nett.cache.packing import coded, dividing
from nett.cache.protocol import Hidden, Tensor
from nett.cache.xquant import inputs
from nett.core.registry import Between, method


@method(papers=["P65"], title="XQuant-CL", kind="serve", grain="block", extra="models")
def xquant_cl(
    hidden: Tensor,
    before: Tensor | None,
    key_basis: Tensor | None,
    value_basis: Tensor | None,
    basis: Tensor | None,
    *,
    bits: Annotated[int, Between(2, 8)] = 3,
    group: Annotated[int, Between(8)] = 32,
    residual: Annotated[int, Between(0)] = 32,
    first: Annotated[int, Between(1)] = 3,
    first_bits: Annotated[int, Between(2, 8)] = 4,
    stream: Literal["normed", "residual"] = "normed",
) -> Hidden:
    """Hold the first layers' inputs X as XQuant does, and of each layer after them the difference to what is read of the one
    before, so that errors do not add up.

    Formula: A = X^ of layer first - 1;  then by layer: D = Q(X - A), A <- A + D, X^ = A
             with fewer key heads than query heads: D = Q((X - A) U) U', U of [W_k | W_v]
    Args:
        bits: of a difference; 2, 3, 4 or 8 waste none.
        group: channels of a token that share a scale; at most as many as divide the width.
        residual: last tokens whose X stays as it is.
        first: layers that stand for themselves; the last of them holds X in all its channels.
        first_bits: of their numbers, where bits are fewer.
        stream: what is held: the projections' input, as in the paper, or the residual stream before the layer's norm,
            which is applied when it is read (all channels are held then, whatever the heads).
    When to use: 4 bits or fewer, deep models, as many key heads as query heads.
    When not: neighbouring layers' inputs differ by as much as they hold.
    Cost: as XQuant; the layers' inputs are added up once more at every step, in one working array of tokens times width.
    Source: P65, sections 3.3 and 3.4. The residual stream is ours.
    """
    if before is None:
        return inputs(hidden, key_basis, value_basis, max(bits, first_bits), group)
    delta = hidden - before
    if basis is not None:
        delta = delta @ basis
    return Hidden((coded(delta, bits, dividing(delta.shape[-1], group), -1),), delta=True)
