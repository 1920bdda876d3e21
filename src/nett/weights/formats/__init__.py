"""How answers of linear kernels lie on disk."""

from __future__ import annotations

from nett.core.errors import UsageError, did_you_mean
from nett.weights.formats.base import Format

NAMES = ("auto", "compressed-tensors", "dense")


def format_named(name: str) -> Format:
    """The format called so; ``auto`` is compressed-tensors, which keeps dense what is not quantised."""
    from nett.weights.formats.compressed_tensors import CompressedTensors
    from nett.weights.formats.dense import Dense

    if name not in NAMES:
        raise UsageError(f"unknown format {name!r}.{did_you_mean(name, NAMES)}")
    return Dense() if name == "dense" else CompressedTensors()
