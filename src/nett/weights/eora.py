"""EoRA: what a compression lost, made good by a low-rank adapter in the directions that the inputs take."""

from __future__ import annotations

from typing import Annotated, Literal

from nett.core.registry import Between, method
from nett.weights.protocol import Factors, Tensor


@method(papers=["P70"], title="EoRA, compensation in the inputs' eigenspace", grain="block")
def eora(
    weight: Tensor,
    compressed: Tensor,
    gram: Tensor,
    *,
    rank: Annotated[int, Between(1, 4096)] = 32,
    by: Literal["eora", "activation", "svd"] = "eora",
) -> Factors:
    """Give a compressed model a LoRA adapter that brings its layers' outputs as near to the original's as a rank can.

    Formula: E = W - C;  U = the leading eigenvectors of E H E^T, with H = X^T X / n;  W ~ C + U (U^T E)
    Args:
        rank: of every layer's adapter.
        by: what the error is weighed by before it is cut to the rank: the inputs' second moments (eora), their diagonal
            alone (activation), or nothing (svd). The last two are there to be compared with.
    When to use: after any compression that cost too much, for a few percent more bytes; nothing is trained.
    When not: where a bit more a weight is at hand: compare at equal bytes. A model whose norms the compression moved (AWQ,
        SmoothQuant) is refused: its layers take other inputs than the original's.
    Cost: two passes of the calibration text through each block, eigenvectors of each layer's shorter side.
    Source: Liu et al. 2024, arXiv:2410.21271, section 3. U is that of the paper's SVD of E H^(1/2), and U^T E what its
        division by the root of H comes to, so that no small eigenvalue is divided by.
    """
    import torch

    kind = torch.float32 if weight.device.type == "mps" else torch.float64
    error, moments = weight.to(kind) - compressed.to(kind), gram.to(kind)
    if by != "eora":
        moments = torch.diag(moments.diagonal()) if by == "activation" else torch.eye(len(moments)).to(moments)
    left = _leading(error, moments, min(rank, *weight.shape))
    right = left.T @ error
    size = right.norm(dim=1).sqrt()  # shared by both factors, so that half precision holds either as well
    size = size.where(size > 0, size.new_ones(()))
    return Factors((left * size).to(weight.dtype), (right / size[:, None]).to(weight.dtype), added=True)


def _leading(error: Tensor, moments: Tensor, rank: int) -> Tensor:
    """The ``rank`` leading left singular vectors of error times the root of the moments: [out, rank], orthonormal."""
    import torch

    rows, columns = error.shape
    if rows <= columns:
        found: Tensor = torch.linalg.eigh(error @ moments @ error.T)[1][:, -rank:].flip(1)
        return found
    values, vectors = torch.linalg.eigh(moments)
    # Of a moment matrix in float32, anything smaller is rounding (the rule of the maintained port in GPTQModel).
    least = values[-1] * min(1.0, columns * torch.finfo(torch.float32).eps)
    kept = values > least
    seen = error @ (vectors[:, kept] * values[kept].sqrt())
    turned = torch.linalg.eigh(seen.T @ seen)[1][:, -rank:].flip(1)
    wide = torch.nn.functional.pad(seen @ turned, (0, rank - turned.shape[1]))
    basis: Tensor = torch.linalg.qr(wide)[0]
    return basis
