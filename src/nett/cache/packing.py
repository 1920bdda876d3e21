"""Numbers as codes of 2, 3, 4 or 8 bits with a scale and a lowest value for each group, along channels or along tokens."""

from __future__ import annotations

from typing import Any

from nett.cache.protocol import Grid
from nett.core.errors import Refused


def coded(numbers: Any, bits: int, group: int, axis: int) -> Grid:
    """``[h, n, d]`` rounded to the nearest of ``2^bits`` evenly spread values between the lowest and the highest of each
    group of ``group`` neighbours along ``axis`` (-1: channels of a token, -2: tokens of a channel). Scales and lowest
    values are kept in the numbers' own type, and codes are the nearest by those."""
    import torch

    shape = tuple(numbers.shape)
    if bits == 32:  # not rounded: what is exact apart from codes is seen so
        return Grid(numbers.clone(), numbers.new_empty(0), numbers.new_empty(0), bits, shape, axis)
    if shape[axis] % group:
        raise Refused(f"{shape[axis]} numbers cannot be cut into groups of {group}")
    parts = _grouped(numbers, group, axis)
    kind = numbers.dtype
    low = parts.amin(-1, keepdim=True)
    scale = ((parts.amax(-1, keepdim=True) - low).float() / (2**bits - 1)).to(kind)
    scale = scale.where(scale > 0, torch.ones_like(scale))
    codes = ((parts.float() - low.float()) / scale.float()).round().clamp(0, 2**bits - 1).to(torch.uint8)
    return Grid(_packed(codes.reshape(-1), bits), scale.squeeze(-1), low.squeeze(-1), bits, shape, axis)


def decoded(grid: Grid) -> Any:
    """``[h, n, d]`` in the type of the scales."""
    if grid.bits == 32:
        return grid.codes
    heads, count, width = grid.shape
    total = heads * count * width
    codes = _unpacked(grid.codes, grid.bits, total)
    group = total // grid.scale.numel()
    lines = width if grid.axis == -1 else count
    parts = codes.reshape(heads, -1, lines // group, group).to(grid.scale.dtype)
    found = (parts * grid.scale.unsqueeze(-1) + grid.low.unsqueeze(-1)).reshape(heads, -1, lines)
    return found if grid.axis == -1 else found.transpose(1, 2)


def dividing(width: int, group: int) -> int:
    """The largest size of group up to ``group`` that cuts ``width`` evenly."""
    return next(g for g in range(min(width, group), 0, -1) if width % g == 0)


def bytes_of(grid: Grid) -> int:
    """Bytes of the codes, scales and lowest values."""
    return int(sum(t.numel() * t.element_size() for t in (grid.codes, grid.scale, grid.low)))


def _grouped(numbers: Any, group: int, axis: int) -> Any:
    lines = numbers if axis == -1 else numbers.transpose(1, 2)
    return lines.reshape(lines.shape[0], lines.shape[1], -1, group)


def _packed(codes: Any, bits: int) -> Any:
    """uint8 codes without gaps: eight of them in ``bits`` bytes."""
    import torch

    if bits == 8:
        return codes
    padded = torch.nn.functional.pad(codes, (0, -codes.numel() % 8)).reshape(-1, 8).to(torch.int64)
    shifts = torch.arange(8, device=codes.device) * bits
    words = (padded << shifts).sum(-1)
    out = torch.arange(bits, device=codes.device) * 8
    return ((words.unsqueeze(-1) >> out) & 255).to(torch.uint8).reshape(-1)


def _unpacked(packed: Any, bits: int, count: int) -> Any:
    import torch

    if bits == 8:
        return packed
    places = torch.arange(bits, device=packed.device) * 8
    words = (packed.reshape(-1, bits).to(torch.int64) << places).sum(-1)
    shifts = torch.arange(8, device=packed.device) * bits
    return ((words.unsqueeze(-1) >> shifts) & (2**bits - 1)).reshape(-1)[:count].to(torch.uint8)
