"""Models of a command line, opened for as long as the work takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nett.core.blocks import Skeleton, open_skeleton
from nett.core.checkpoint import open_checkpoint
from nett.core.errors import UsageError, missing_extra
from nett.core.runner import thread_count


@contextmanager
def opened(asset: str, device: str = "cpu", threads: int = 0) -> Iterator[Skeleton]:
    """The model's skeleton; its checkpoint is dense, whatever it is stored as."""
    try:
        import torch
    except ImportError as error:
        raise missing_extra("torch", "models", "the weights room") from error
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device = {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(thread_count(threads))
    with threadpool_limits(thread_count(threads), "blas"), open_checkpoint(asset, dense=True) as checkpoint:
        yield open_skeleton(checkpoint, device)
