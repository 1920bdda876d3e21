"""The one shape of this room's methods, and its laws.

A method of kind *reduce* is a pure kernel on torch tensors, wherever they lie; its operands say what it sees:

``weight``: the matrix of one linear layer, ``[out, in]``, in the model's own type (kernels compute in float32 or
wider, and return what they return in that type). ``weights`` instead: those of all layers that share one input, which
the answer is a list for. ``bias``: ``[out]`` or None. Behind them the moments of the layer's inputs x over the tokens of the
calibration text, each asked for by its name (:mod:`nett.core.moments`): ``gram`` (mean of x x^T), ``squares`` (mean
of x^2), ``means``, ``magnitudes`` (mean of \\|x\\|), ``largest`` (of \\|x\\|); float32. ``source``: int64 ``[in]``, for
each input the entry of the tensor before that it is proportional to, so that it may be scaled there at no cost
(:mod:`nett.weights.folding`); None where there is no such tensor. ``compressed``: what another compression made of
``weight``, dense; the command then takes two models. Such kernels are driven block by block
(:mod:`nett.weights.layerwise`).

``model, windows``: the whole model as a module of transformers in float32, and token windows int64 ``[n, length]``;
``model`` alone where no text is needed. The kernel may change that module, and returns it in a :class:`Shrunk`
(:mod:`nett.core.whole_model`).

What a linear kernel returns is a tensor of the shape and type of ``weight`` (pruned), a :class:`Quantised`,
:class:`Factors` or a :class:`Stack`; one that sees ``source`` may return them :class:`Scaled`. Laws: the same call gives
the same bits; inputs are not written to; the result does not depend on
the device's thread count beyond rounding; with the card's ``identity`` parameters the weight comes back; what is
written loads as it was computed; a bad parameter is named with its range.

A method of kind *train* is a function that returns the optimizer or callback (used from Python); one of kind
*measure* takes the user's paths itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from nett.core.whole_model import Shrunk as Shrunk

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor
else:
    Tensor = Any

SINGLE, SHARED, MODEL = "weight", "weights", "model"  # first operands


@final
@dataclass(frozen=True)
class Quantised:
    """Whole numbers and what they stand for: ``(codes - zero) * scale``, computed and rounded in the type of scale.

    codes: int8 [out, in], from -2^(bits-1) to 2^(bits-1)-1. scale: [out, groups], in the model's type; a group is
    ``in / groups`` neighbouring columns. zero: int8 [out, groups]; None where the numbers lie around zero.
    activations: bits that the inputs are rounded to, a scale for each token, when the model runs.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    activations: int | None = None

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return int(self.codes.shape[1]) // int(self.scale.shape[1])

    def dense(self) -> Tensor:
        """What the numbers stand for, in the type of scale."""
        rows, columns = self.codes.shape
        codes = self.codes.to(self.scale.dtype).reshape(rows, -1, self.group)
        if self.zero is not None:
            codes = codes - self.zero.to(self.scale.dtype).unsqueeze(-1)
        return (codes * self.scale.unsqueeze(-1)).reshape(rows, columns)


@final
@dataclass(frozen=True)
class Factors:
    """``left`` [out, r] @ ``right`` [r, in], and a bias [out] that goes with it or None.

    added: to be added to the (compressed) weight, as a LoRA adapter is; otherwise in its place.
    """

    left: Tensor
    right: Tensor
    bias: Tensor | None = None
    added: bool = False

    def dense(self) -> Tensor:
        return self.left @ self.right


@final
@dataclass(frozen=True)
class Signs:
    """One term of a :class:`Stack`: the signs, 8 a byte, of the flattened matrix (1 is plus; the first is the highest bit;
    zeros at the end), times the float16 product ``left`` [out, k] @ ``right`` [k, in]."""

    signs: Tensor
    left: Tensor
    right: Tensor


@final
@dataclass(frozen=True)
class Stack:
    """A sum of ``terms``, most important first, divided by ``scale`` (float16 [in]); any number of the first terms is a
    coarser answer. ``errors``: squared norm of what is left of the scaled weight behind none, one, two, … terms, relative to
    its own."""

    scale: Tensor
    terms: Sequence[Signs]
    errors: Sequence[float]

    def dense(self, count: int | None = None) -> Tensor:
        """What the first ``count`` terms stand for, float32 [out, in]."""
        from nett.weights.sign_terms import composed

        return composed(self.scale, self.terms[:count])


Answer = Tensor | Quantised | Factors | Stack


@final
@dataclass(frozen=True)
class Scaled:
    """Answers for layers whose inputs are divided by ``scale`` float32 [in] in the tensor before: each stands for
    ``weight * scale``. ``scale`` is positive, and the same for all inputs that have one ``source``."""

    answers: Sequence[Answer]
    scale: Tensor
