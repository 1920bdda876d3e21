"""A matrix that lies on a quantisation grid as the whole numbers and scales that give back every bit of it."""

from __future__ import annotations

import numpy as np

from nett.core.dtypes import DTYPES, Array, Dtype
from nett.core.grid import Grid, Packed, grids, hopeless, pack
from nett.weights.protocol import Quantised, Tensor

_FIRST = 1 << 12  # elements that a grid is tried on before it is on all


def on_grid(weight: Tensor) -> Quantised | None:
    """``weight`` ``[out, in]`` (float32, float16 or bfloat16) as ``(codes - zero) * scale``, computed in its own type and
    proved bit for bit, with the fewest bits; None where no grid within its rows holds it in that form."""
    dtype = next((d for d in DTYPES.values() if d.alias == str(weight.dtype).removeprefix("torch.")), None)
    if dtype is None or dtype.name not in ("F32", "F16", "BF16") or weight.numel() == 0:
        return None
    import torch

    raw = weight.detach().cpu().contiguous().view(torch.uint8).numpy().reshape(-1).view(dtype.raw)
    if bool((raw == raw[0]).all()) or hopeless(raw, dtype):
        return None
    rows, columns = weight.shape
    for grid in _within(dtype, raw.size, columns):
        start = raw[: max(grid.group, _FIRST // grid.group * grid.group)]
        if pack(start, dtype, grid) is None:
            continue
        packed = pack(raw, dtype, grid)
        found = _standard(packed, rows, columns, weight) if packed is not None else None
        if found is not None and torch.equal(_bits(found.dense()), _bits(weight)):
            return found
    return None


def _within(dtype: Dtype, size: int, columns: int) -> list[Grid]:
    """Grids whose groups lie within a row, fewest bits first as compressed-tensors keeps them: a scale in the model's type
    and a zero point of as many bits as a number. Where zeros have both signs, no scale gives them back."""

    def bits(grid: Grid) -> float:
        return grid.width + (dtype.bits + grid.minimum * grid.width) / grid.group

    fitting = [g for g in grids(dtype, size, columns) if columns % g.group == 0 and not g.zeros]
    return sorted(fitting, key=lambda g: (bits(g), -g.group))


def _standard(packed: Packed, rows: int, columns: int, weight: Tensor) -> Quantised | None:
    """As compressed-tensors has it: scales in the type of ``weight``, zero points whole numbers of as many bits."""
    import torch

    bits, groups = packed.grid.width, columns // packed.grid.group
    scales, codes, zero = packed.scales.astype(np.float32), packed.codes.astype(np.int16), None
    if packed.mins is not None:
        shifts = _shifts(packed, scales, (1 << bits) - 1)
        if shifts is None:
            return None
        zero = torch.from_numpy((shifts - (1 << bits - 1)).astype(np.int8).reshape(rows, groups))
        codes = codes - np.int16(1 << bits - 1)
    scale = torch.from_numpy(scales.reshape(rows, groups))
    if not torch.equal(scale.to(weight.dtype).float(), scale):
        return None
    whole = torch.from_numpy(codes.astype(np.int8).reshape(rows, columns))
    return Quantised(whole, scale.to(weight.dtype), zero, bits)


def _shifts(packed: Packed, scales: Array, most: int) -> Array | None:
    """Zero points of minima: the whole numbers nearest to -minimum / scale, where all are from 0 to ``most``. Of several
    minima that give the numbers of a group the fit took the one with the fewest bits, so that it need not be one."""
    assert packed.mins is not None
    mins = packed.mins.astype(np.float32)
    flat = scales == 0
    if bool((flat & (mins != 0)).any()):
        return None  # groups of one number that is not zero: there is no scale to count it in
    scales[flat] = 1.0
    shifts = -mins / scales
    whole = np.rint(shifts)
    return whole if bool(((whole >= 0) & (whole <= most)).all()) else None


def _bits(tensor: Tensor) -> Tensor:
    import torch

    return tensor.contiguous().cpu().view(torch.uint8)
