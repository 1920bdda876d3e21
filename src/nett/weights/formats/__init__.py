"""How answers of linear kernels lie on disk."""

from __future__ import annotations

from typing import Any

from nett.core.blocks import Skeleton
from nett.core.errors import UsageError, did_you_mean
from nett.weights.formats.base import Format
from nett.weights.job import Job

NAMES = ("auto", "compressed-tensors", "dense", "gguf", "adapter")


def format_named(name: str) -> Format:
    """The format called so; ``auto`` is compressed-tensors, which keeps dense what is not quantised."""
    from nett.weights.formats.compressed_tensors import CompressedTensors
    from nett.weights.formats.dense import Dense

    if name not in NAMES:
        raise UsageError(f"unknown format {name!r}.{did_you_mean(name, NAMES)}")
    if name == "adapter":
        raise UsageError(
            "is for what is added to a compressed model, as nett weights eora does", where="--format adapter"
        )
    return Dense() if name == "dense" else CompressedTensors()


def group_of(name: str) -> int:
    """Columns that share a scale in the format called so; 0 where any number may."""
    return 32 if name == "gguf" else 0


def format_for(job: Job, name: str, dtype: Any, skeleton: Skeleton) -> Format:
    """The format of a run: of what is added to a compressed model an adapter, of blocks a stack, else the one called so."""
    if "blocks" in job.parameters and name == "auto":
        from nett.weights.formats.stack import StackFormat

        return StackFormat()
    if "compressed" not in job.card.operands:
        if name == "gguf":
            from nett.weights.formats.gguf import Gguf

            return Gguf(skeleton, job)
        return format_named(name)
    if name not in ("auto", "adapter"):
        raise UsageError(
            f"format = {name!r}: what is added to a compressed model is written as an adapter",
            where=job.card.key,
            hint="One model of both: nett convert COMPRESSED+ADAPTER OUT",
        )
    from nett.weights.formats.adapter import Adapter

    tasks = [task for block in job.blocks for task in block]
    return Adapter(max(min(t.parameters["rank"], t.linear.rows, t.linear.columns) for t in tasks), dtype)
