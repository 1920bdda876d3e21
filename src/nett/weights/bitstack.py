"""BitStack: each layer as a stack of terms of about one bit a weight, so that one file serves every budget of memory."""

from __future__ import annotations

from typing import Annotated, Literal

from nett.core.errors import Refused
from nett.core.registry import Between, method
from nett.weights.protocol import Stack, Tensor
from nett.weights.sign_terms import rank_for, taken_apart

_LEAST = 0.01  # of the mean scale: columns that had hardly an input


@method(papers=["P32"], title="BitStack, one file for every budget", grain="block")
def bitstack(
    weight: Tensor,
    squares: Tensor,
    *,
    blocks: Annotated[int, Between(1, 32)] = 8,
    rank: Annotated[int, Between(0, 256)] = 0,
    order: Literal["perplexity", "error"] = "perplexity",
    evaluations: Annotated[int, Between(0)] = 500,
) -> Stack:
    """Take every layer apart into blocks of signs times low-rank magnitudes, and order the blocks of all layers.

    The result is read at any budget: nett.load(DIR, budget="90MB"), nett convert DIR/90MB OUT; a model that changes its
    budget while it runs is nett.weights.stacked(DIR, budget="90MB").

    Formula: R_0 = W diag(s);  block_i = sign(R_i) * (U_k S_k V_k^T of \\|R_i\\|, in half precision);  R_i+1 = R_i - block_i
    Args:
        blocks: of each layer; each takes a little more than a bit a weight.
        rank: of a block's magnitudes; 0 for the largest that takes an eighth of a bit a weight, at least 1.
        order: within a level, raise the layers first that lower the perplexity most when they alone are raised, or those
            that lower their own outputs' error most, which runs no model.
        evaluations: at most so many runs of the model on some of the calibration text; levels that are not reached take the
            order of the nearest below.
    When to use: the memory that a model may have is not known, or changes; below 3 bits a weight.
    When not: one budget of 3 bits or more that stays: gptq is better there, and other programs load it.
    Cost: two passes of the calibration text through each block; the order holds the whole model in float32, and takes
        half a pass of up to 2,048 tokens for each evaluation (--dry-run says how long), by error nothing.
    Source: Wang et al. 2024, arXiv:2410.23918, sections 2.1 to 2.3. s is the root mean square of each input, kept beside the
        blocks rather than folded into the layer before, so that any architecture has it; blocks are taken off as rounded.
    """
    import torch

    if not bool(torch.isfinite(weight).all()):
        raise Refused("a weight is NaN or infinite, so it cannot be taken apart", where="weights/bitstack")
    scale = squares.float().sqrt()
    mean = scale.mean()
    scale = (scale / mean.where(mean > 0, mean.new_ones(()))).clamp(min=_LEAST).to(torch.float16)
    rows, columns = weight.shape
    terms, errors = taken_apart(weight.float() * scale.float(), blocks, rank_for(rows, columns, rank))
    return Stack(scale, terms, errors)
