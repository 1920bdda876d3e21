"""A mixture of a command line, opened for as long as the work takes: its view, and its skeleton to run it by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from nett.core.blocks import Skeleton, open_skeleton
from nett.core.checkpoint import open_checkpoint
from nett.core.device import use_device
from nett.core.errors import Refused
from nett.core.expert_modules import Mixture, mixtures
from nett.experts.layouts import FileLayer
from nett.experts.view import experts_view


@final
@dataclass(frozen=True)
class Opened:
    """``layers``: its mixtures as they lie in the file; ``skeleton``: the model without its weights."""

    layers: Sequence[FileLayer]
    skeleton: Skeleton

    def mixture(self, number: int) -> Mixture:
        """The mixture inside the block ``number``."""
        return mixtures(self.skeleton.blocks[number])[0]


@contextmanager
def opened(asset: str, device: str = "cpu", threads: int = 0) -> Iterator[Opened]:
    """Refused, before any weight is read, for what is no mixture, or one that does not fit its config."""
    from threadpoolctl import threadpool_limits

    count = use_device(device, threads, "the experts room")
    with threadpool_limits(count, "blas"), open_checkpoint(asset, dense=True) as checkpoint:
        layers = experts_view(checkpoint)
        skeleton = open_skeleton(checkpoint, device)
        found = {number: len(mixtures(block)) for number, block in enumerate(skeleton.blocks)}
        for layer in layers:
            if found.get(layer.number) != 1:
                raise Refused(
                    f"{layer.name} is no mixture in the model that transformers builds of its config", where=asset
                )
        yield Opened(layers, skeleton)
