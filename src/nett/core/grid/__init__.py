"""Weights that lie on a quantisation grid, such as a dequantised GGUF, and their packed form.

A float tensor that was made from integer codes and a scale per group holds no more than those. The grid is found from
the values alone, and what proves it is that the codes give back every bit; nothing here goes by a tolerance.
"""

from nett.core.grid.kinds import GGUF, Grid, grids
from nett.core.grid.pack import Packed, as_gguf, detect, hopeless, pack, sniff, unpack

__all__ = ["GGUF", "Grid", "Packed", "as_gguf", "detect", "grids", "hopeless", "pack", "sniff", "unpack"]
