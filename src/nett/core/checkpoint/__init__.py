"""Checkpoints behind one interface that knows names, shapes, types and bytes from headers alone."""

from nett.core.checkpoint.base import Checkpoint, TensorInfo
from nett.core.checkpoint.opening import open_checkpoint
from nett.core.checkpoint.writer import OutputFile, TensorSpec, shard_plan

__all__ = ["Checkpoint", "OutputFile", "TensorInfo", "TensorSpec", "open_checkpoint", "shard_plan"]
