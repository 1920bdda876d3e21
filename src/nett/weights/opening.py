"""Models of a command line, opened for as long as the work takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nett.core.blocks import Skeleton, open_skeleton
from nett.core.checkpoint import open_checkpoint
from nett.core.device import use_device
from nett.core.errors import Refused


@contextmanager
def opened(asset: str, device: str = "cpu", threads: int = 0) -> Iterator[Skeleton]:
    """The model's skeleton; its checkpoint is dense, whatever it is stored as."""
    from threadpoolctl import threadpool_limits

    count = use_device(device, threads, "the weights room")
    with threadpool_limits(count, "blas"), open_checkpoint(asset, dense=True) as checkpoint:
        skeleton = open_skeleton(checkpoint, device)
        if skeleton.fused:
            name = next(iter(skeleton.fused))
            raise Refused(
                f"is a mixture of experts: {name!r} is made of {len(skeleton.fused[name].tensors)} tensors, and this room "
                "works on linear layers",
                where=checkpoint.path,
                hint="nett experts makes mixtures smaller: nett list experts",
            )
        yield skeleton
