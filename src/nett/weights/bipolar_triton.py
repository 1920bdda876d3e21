"""Products of bit planes as a Triton kernel, for CUDA; with TRITON_INTERPRET=1 it runs anywhere, for tests.

Importing this file imports Triton, whose decorator reads that variable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from nett.weights.bit_planes import Layout, largest
from nett.weights.popcount_kernels import LANES

if TYPE_CHECKING:
    Constant = Any
else:
    Constant = tl.constexpr

ROWS, INPUTS = 32, 16  # of a program
_ROWS, _INPUTS, _LANES = tl.constexpr(ROWS), tl.constexpr(INPUTS), tl.constexpr(LANES)


@triton.jit
def _bits(v):  # type: ignore[no-untyped-def]
    """Bits that are set, by sums of neighbouring fields; LLVM knows the idiom and writes its own instruction for it."""
    v = v - ((v >> 1) & 0x5555555555555555)
    v = (v & 0x3333333333333333) + ((v >> 2) & 0x3333333333333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F0F0F0F0F
    v = v + (v >> 8)
    v = v + (v >> 16)
    v = v + (v >> 32)
    return v & 0x7F


@triton.jit  # type: ignore[untyped-decorator]
def _products(  # type: ignore[no-untyped-def]
    w, scale, x, x_scale, tops, out, rows, inputs, groups, words, WIDE: Constant, NARROW: Constant, EXACT: Constant
):
    """out[input, row] of one block of rows and inputs; ``EXACT`` leaves the scales out and sums int64."""
    row = tl.program_id(0) * _ROWS + tl.arange(0, _ROWS)
    column = tl.program_id(1) * _INPUTS + tl.arange(0, _INPUTS)
    tile, lane = row // _LANES, row % _LANES
    here, there = row < rows, column < inputs
    if EXACT:
        total = tl.zeros((_INPUTS, _ROWS), tl.int64)
    else:
        total = tl.zeros((_INPUTS, _ROWS), tl.float32)
    for g in range(groups):
        differ = tl.zeros((_INPUTS, _ROWS), tl.int64)
        for k in range(g * words, (g + 1) * words):
            for i in tl.static_range(WIDE):
                a = tl.load(w + ((tile * WIDE + i) * (groups * words) + k) * _LANES + lane, mask=here, other=0)
                for j in tl.static_range(NARROW):
                    b = tl.load(x + (column * NARROW + j) * (groups * words) + k, mask=there, other=0)
                    differ += _bits(b[:, None] ^ a[None, :]) << (i + j)
        dot = tl.load(tops + g) - 2 * differ
        if EXACT:
            total += dot
        else:
            total += dot.to(tl.float32) * tl.load(scale + row * groups + g, mask=here, other=0.0)[None, :]
    if not EXACT:
        total = total * tl.load(x_scale + column, mask=there, other=0.0)[:, None]
    tl.store(out + column[:, None] * rows + row[None, :], total, mask=there[:, None] & here[None, :])


def packed(codes: torch.Tensor, bits: int, layout: Layout) -> torch.Tensor:
    """Odd integers ``[rows, length]`` as planes int64 ``[rows, bits, words]``, on their device."""
    rows = len(codes)
    digits = torch.zeros(rows, layout.groups * layout.group, dtype=torch.int64, device=codes.device)
    digits[:, : layout.length] = (codes.to(torch.int64) + largest(bits)) >> 1
    wide = torch.zeros(rows, layout.groups, layout.group_words * 64, dtype=torch.int64, device=codes.device)
    wide[:, :, : layout.group] = digits.reshape(rows, layout.groups, layout.group)
    wide = wide.reshape(rows, layout.words, 64)
    places = torch.arange(64, device=codes.device)
    # each bit has a place of its own, so that a sum that goes past 2^63 still sets the right ones
    return torch.stack([(((wide >> i) & 1) << places).sum(-1) for i in range(bits)], dim=1)


def exact(planes: torch.Tensor, rows: int, codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Weights (planes int64 ``[tiles, wide, words, 8]``) times odd integers ``[inputs, length]``: int64 ``[inputs, rows]``."""
    layout = Layout.of(codes.shape[1])
    out = torch.empty(len(codes), rows, dtype=torch.int64, device=codes.device)
    one = torch.ones(1, device=codes.device)
    _launch(planes, one, packed(codes, bits, layout), one, layout, out)
    return out


def scaled(
    planes: torch.Tensor, scale: torch.Tensor, codes: torch.Tensor, step: torch.Tensor, layout: Layout, bits: int
) -> torch.Tensor:
    """The same times ``scale`` [rows, groups] and ``step`` [inputs]: float32 ``[inputs, rows]``."""
    out = torch.empty(len(codes), len(scale), dtype=torch.float32, device=codes.device)
    _launch(planes, scale, packed(codes, bits, layout), step, layout, out)
    return out


def _launch(
    planes: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, step: torch.Tensor, layout: Layout, out: torch.Tensor
) -> None:
    inputs, rows = out.shape
    wide, narrow = planes.shape[1], x.shape[1]
    tops = torch.from_numpy(layout.lengths).to(out.device) * (largest(wide) * largest(narrow))
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(inputs, INPUTS))
    _products[grid](
        planes,
        scale,
        x,
        step,
        tops,
        out,
        rows,
        inputs,
        layout.groups,
        layout.group_words,
        WIDE=wide,
        NARROW=narrow,
        EXACT=out.dtype == torch.int64,
    )
