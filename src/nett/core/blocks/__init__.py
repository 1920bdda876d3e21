"""A language model run block by block: only one block's weights are in memory at a time."""

from nett.core.blocks.skeleton import Linear, Skeleton, open_skeleton
from nett.core.blocks.walk import Walk

__all__ = ["Linear", "Skeleton", "Walk", "open_skeleton"]
