"""Models of a command line, opened for as long as the work takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nett.core.blocks import Skeleton, open_skeleton
from nett.core.checkpoint import open_checkpoint
from nett.core.device import use_device


@contextmanager
def opened(asset: str, device: str = "cpu", threads: int = 0) -> Iterator[Skeleton]:
    """The model's skeleton; its checkpoint is dense, whatever it is stored as."""
    from threadpoolctl import threadpool_limits

    count = use_device(device, threads, "the weights room")
    with threadpool_limits(count, "blas"), open_checkpoint(asset, dense=True) as checkpoint:
        yield open_skeleton(checkpoint, device)
