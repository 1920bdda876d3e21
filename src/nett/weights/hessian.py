"""The second moments of a layer's inputs as the Hessian of its squared output error, ready for column-wise pruning
and rounding (Frantar et al. 2022, arXiv:2210.17323)."""

from __future__ import annotations

from nett.core.errors import NettError
from nett.weights.protocol import Tensor

_TRIES = 6


def upper_inverse(gram: Tensor, damping: float) -> Tensor:
    """U upper triangular with U^T U = (gram + damping * mean(diagonal) I)^-1, float32.

    A matrix that is not positive definite even so is damped ten times as much, up to six times.
    """
    import torch

    wide = gram.double() if gram.device.type != "mps" else gram.float()
    mean = wide.diagonal().mean()
    eye = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    for times in range(_TRIES):
        lower, failed = torch.linalg.cholesky_ex(wide + eye * (mean * damping * 10**times))
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                found: Tensor = upper.float()
                return found
    raise NettError(f"the inputs' second moments ({len(gram)} columns) have no Cholesky factor, however damped")


def without_dead(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (float32) and moments where columns that never had an input other than zero are zero and harmless."""
    weight, gram = weight.float().clone(), gram.clone()
    dead = gram.diagonal() == 0
    gram.diagonal()[dead] = 1
    weight[:, dead] = 0
    return weight, gram
