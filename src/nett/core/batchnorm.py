"""BatchNorm statistics of a network whose weights were changed: measured again on inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def batch_norms(module: Any) -> list[Any]:
    """Its layers that keep running statistics."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def re_estimate(module: Any, batches: Iterable[tuple[Any, ...]]) -> int:
    """In place: mean and variance of every BatchNorm layer, averaged over ``batches`` of the module's arguments.

    Everything else (dropout, …) is as in evaluation. Returns the number of layers; nothing is run where there is none.
    """
    import torch

    layers = batch_norms(module)
    if layers:
        with _measuring(module, layers), torch.no_grad():
            for arguments in batches:
                module(*arguments)
    return len(layers)


@contextmanager
def _measuring(module: Any, layers: list[Any]) -> Iterator[None]:
    was = [(m, m.training) for m in module.modules()]
    momenta = [layer.momentum for layer in layers]
    module.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # an average of all batches
        layer.training = True
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for one, training in was:
            one.training = training
