"""Atomic feature mimicking (P78): a linear layer as two thin ones, in the directions in which its outputs vary."""

from __future__ import annotations

from typing import Annotated, Literal

from nett.core.errors import NettError
from nett.core.registry import Between, method
from nett.weights.protocol import Factors, Tensor


@method(papers=["P78"], title="Atomic feature mimicking", grain="block", identity={"energy": 1.0})
def afm(
    weight: Tensor,
    bias: Tensor | None,
    gram: Tensor,
    means: Tensor,
    *,
    energy: Annotated[float, Between(0, 1)] = 0.99,
    share: Annotated[float | None, Between(0, 1, open_low=True)] = None,
    rank: Annotated[int | None, Between(1)] = None,
    centre: Literal["biased", "always", "never"] = "biased",
) -> Factors | Tensor:
    """Put two thin layers in place of one: the principal components of its outputs on the calibration data, and what they take from its input.

    Formula: y = W x + b;  Cov(y) = U diag(l) U^T, l descending;  left = U_k, right = U_k^T W,
             bias = U_k U_k^T b + (I - U_k U_k^T) E[y];  mean squared error = l_(k+1) + l_(k+2) + …
             and each direction scaled so that both layers have it at the same norm
    Args:
        energy: the least rank whose components hold this share of the outputs' variance.
        share: numbers in the two layers as a share of those in the one, in place of energy.
        rank: components kept, in place of both.
        centre: whose outputs vary about their mean, which goes into the bias: those of layers that have a bias, all (a
            layer without gets one, which files of language models have no room for) or none.
    A layer comes back as it is where the two would hold no fewer numbers than the one.
    When to use: wide layers whose outputs lie in few directions, such as those of recommenders; any torch module
        (mimicked), where embeddings are cut by the same rule.
    When not: language models at few bytes: rounding costs less. On the command line the product of the two is written,
        which is no smaller.
    Cost: the eigenvectors of a matrix [out, out] for each layer.
    Guarantee: no other linear map of this rank has a smaller mean squared error on the calibration data.
    Source: P78, sections 3.2 and 3.3.
    """
    import torch

    wide = weight.double()
    mean = wide @ means.double() + (0.0 if bias is None else bias.double())
    inputs = gram.double()
    about_mean = centre == "always" or (centre == "biased" and bias is not None)
    if about_mean:
        inputs = inputs - torch.outer(means.double(), means.double())
    found = components(wide @ inputs @ wide.T)
    kept = rank_for(found[0], weight.shape, energy=energy, share=share, rank=rank)
    if kept * sum(weight.shape) >= weight.numel():
        return weight
    left = found[1][:, :kept]
    right = left.T @ wide
    kind = weight.dtype
    if about_mean:
        rest = mean if bias is None else mean - bias.double()
        bias = (mean - left @ (left.T @ rest)).to(kind)
    left, right = even(left, right)
    return Factors(left.to(kind), right.to(kind), bias)


def components(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending and not negative, and eigenvectors as columns, each with its largest entry positive."""
    import torch

    if not bool(torch.isfinite(covariance).all()):
        raise NettError("the outputs on the calibration data are not finite")
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * largest.sign()


def even(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, its factors of equal norm in each direction: what an optimizer that moves all numbers by about
    the same step trains best (claim P78), and what narrow types round evenly."""
    share = (right.norm(dim=1) / left.norm(dim=0).clamp(min=1e-30)).sqrt()
    share = share.where(share > 0, share.new_ones(()))
    return left * share, right / share.unsqueeze(1)


def rank_for(values: Tensor, shape: tuple[int, ...], *, energy: float, share: float | None, rank: int | None) -> int:
    """How many components to keep of a matrix ``[out, in]``: ``rank``, else by ``share`` of its numbers, else by ``energy``."""
    most = min(shape)
    if rank is not None:
        return min(rank, most)
    if share is not None:
        return max(1, min(most, int(share * shape[0] * shape[1] / sum(shape))))
    total = float(values.sum())
    if total <= 0 or energy >= 1:
        return 1 if total <= 0 and energy < 1 else most
    held = values.cumsum(0) / total
    return min(most, 1 + int((held < energy).sum()))
