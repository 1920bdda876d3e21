"""A linear layer whose weights lie in bit planes, and whose inputs are rounded to few bits, a scale for each token (P56)."""

from __future__ import annotations

from typing import Any, Literal, final

import numpy as np
import torch

from nett.core.dtypes import Array
from nett.core.errors import UsageError
from nett.weights import popcount
from nett.weights.bipolar_int import nearest, scales
from nett.weights.bit_planes import Layout, check_bits, largest, pack, unpack
from nett.weights.popcount_kernels import LANES

Rule = Literal["auto", "normal", "largest"]
# Half the step of the best uniform quantiser of 2^n levels for normally distributed values of variance 1
# (Max 1960, "Quantizing for minimum distortion", table II, and the same equations solved for 6 to 8 bits).
NORMAL = (0.7979, 0.4979, 0.2930, 0.1676, 0.0941, 0.0520, 0.0284, 0.0154)


@final
class BipolarLinear(torch.nn.Module):
    """``y = x W^T + b`` for ``W`` in ``bits`` and x in ``activations`` bits: products of odd integers, exact before scales.

    Runs on the CPU by population count (:mod:`nett.weights.popcount`), on CUDA by a Triton kernel; for inference only.
    Buffers: ``planes`` int64 [tiles, bits, words, 8], ``scale`` float32 [out, groups], ``bias`` or None.
    """

    planes: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int,
        activations: int,
        group: int = 0,
        bias: bool = False,
        rule: Rule = "auto",
    ) -> None:
        super().__init__()
        check_bits(bits)
        check_bits(activations)
        self.in_features, self.out_features, self.rule = in_features, out_features, rule
        self.bits, self.activations, self.layout = bits, activations, Layout.of(in_features, group)
        tiles = -(-out_features // LANES)
        shape = (tiles, bits, self.layout.words, LANES)
        self.register_buffer("planes", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("scale", torch.ones(out_features, self.layout.groups))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    def of(
        cls,
        linear: torch.nn.Linear,
        *,
        bits: int,
        activations: int,
        group: int = 0,
        search: bool = True,
        rule: Rule = "auto",
    ) -> BipolarLinear:
        """A layer's weights, rounded. group: columns that share a scale, the last of a row may have fewer; 0 for the row."""
        weight = linear.weight.detach().float()
        made = cls(
            linear.in_features,
            linear.out_features,
            bits=bits,
            activations=activations,
            group=group,
            bias=linear.bias is not None,
            rule=rule,
        )
        codes, scale = [], []
        for part in torch.split(weight, made.layout.group, dim=1):
            scale.append(scales(part, bits, search=search))
            codes.append(nearest(part, scale[-1], bits))
        made.take(torch.cat(codes, 1), torch.stack(scale, 1), linear.bias)
        return made.to(linear.weight.device)

    def take(self, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Set the weights: odd integers [out, in] and a scale for each group; UsageError where they do not fit."""
        shapes = (tuple(codes.shape), tuple(scale.shape))
        expected = ((self.out_features, self.in_features), (self.out_features, self.layout.groups))
        if shapes != expected:
            raise UsageError(f"codes and scale of shapes {shapes} do not fit a layer that takes {expected}")
        planes = pack(codes.cpu().numpy(), self.bits, self.layout.group)
        self.planes = torch.from_numpy(popcount.tiled(planes).view(np.int64)).to(self.planes.device)
        self.scale = scale.detach().float().to(self.scale.device)
        if bias is not None:
            self.bias = bias.detach().float().clone()

    def dense(self) -> torch.Tensor:
        """The weights that the planes stand for, float32 [out, in]."""
        planes = popcount.untiled(_words(self.planes.cpu()), self.out_features)
        codes = torch.from_numpy(unpack(planes, self.in_features, self.layout.group)).float()
        wide = self.scale.cpu().repeat_interleave(torch.from_numpy(self.layout.lengths), dim=1)
        return codes * wide

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: ``[…, in]``, floating point; the result has its type."""
        rows = x.detach().reshape(-1, self.in_features).float().contiguous()
        step = input_scale(rows, self.activations, self.rule)
        if rows.is_cuda:
            from nett.weights.bipolar_triton import scaled

            codes = nearest(rows, step, self.activations)
            made = scaled(self.planes, self.scale, codes, step, self.layout, self.activations)
        else:
            steps, threads = step.numpy(), torch.get_num_threads()
            planes = popcount.rounded(rows.numpy(), self.activations, steps, self.layout, threads)
            found = popcount.scaled(_words(self.planes), self.scale.numpy(), planes, steps, self.layout, threads)
            made = torch.from_numpy(found)
        if self.bias is not None:
            made += self.bias
        return made.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits},"
            f" activations={self.activations}, group={self.layout.group}, bias={self.bias is not None}"
        )


def input_scale(rows: torch.Tensor, bits: int, rule: Rule) -> torch.Tensor:
    """A scale for each row of float32 ``[tokens, in]``. ``largest``: so that the largest is met. ``normal``: the best for
    normally distributed numbers, which cuts off those beyond; never more than ``largest`` gives. ``auto``: ``normal`` up
    to 2 bits, beyond them ``largest`` (claim P56: of language models' inputs the far ones matter, while there are levels)."""
    scale = rows.abs().amax(1) / largest(bits)
    if rule == "normal" or (rule == "auto" and bits <= 2):
        scale = torch.minimum(scale, NORMAL[bits - 1] * rows.square().mean(1).sqrt())
    return scale.where(scale > 0, scale.new_ones(()))


def _words(planes: torch.Tensor) -> Array:
    found: Any = planes.numpy()
    return np.asarray(found.view(np.uint64))
