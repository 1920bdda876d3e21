"""A linear layer that holds blocks of signs and magnitudes, and is put together when it is run."""

from __future__ import annotations

from functools import cache
from typing import Any

from nett.weights.protocol import Signs, Tensor
from nett.weights.sign_terms import composed


def sign_linear(scale: Tensor, bias: Tensor | None, *, keep: bool) -> Any:
    """A module with a list ``terms``, empty at first; call its ``changed()`` when that has changed. ``keep``: the composed
    matrix stays in memory."""
    return _module()(scale, bias, keep)


@cache
def _module() -> Any:
    import torch

    class SignLinear(torch.nn.Module):
        """y = x W^T + b, W composed of the ``terms`` that are there."""

        def __init__(self, scale: Tensor, bias: Tensor | None, keep: bool) -> None:
            super().__init__()
            self.scale: Tensor
            self.register_buffer("scale", scale)
            self.bias, self.keep = bias, keep
            self.terms: list[Signs] = []
            self.composed: Tensor | None = None

        def changed(self) -> None:
            self.composed = composed(self.scale, self.terms) if self.keep else None

        def forward(self, inputs: Tensor) -> Tensor:
            weight = self.composed if self.composed is not None else composed(self.scale, self.terms)
            return torch.nn.functional.linear(inputs, weight.to(inputs.dtype), self.bias)

        def extra_repr(self) -> str:
            return f"blocks={len(self.terms)}, in_features={len(self.scale)}"

    return SignLinear
