"""The one shape of a format: tensors out of an answer, the dense matrix that a loader makes of them, and the config."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nett.core.blocks import Linear
from nett.weights.protocol import Answer, Tensor


class Written(NamedTuple):
    """A linear layer as it was written: ``kind`` is what the format needs for the config, plain JSON."""

    linear: Linear
    kind: Mapping[str, Any]


class Format(ABC):
    """Abstract; the finals are the files beside this one."""

    name: str

    @abstractmethod
    def tensors(self, linear: Linear, answer: Answer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Name in the checkpoint -> tensor of one layer, and its kind; Refused where the format cannot hold it."""

    @abstractmethod
    def value(self, linear: Linear, tensors: Mapping[str, Tensor], kind: Mapping[str, Any]) -> Tensor:
        """The matrix that a loader makes of the tensors, ``[out, in]``."""

    def config(self, config: dict[str, Any], layers: Sequence[Written], kept: Sequence[str]) -> dict[str, Any]:
        """``config.json`` of the result; ``kept`` are the names of all linear layers that stayed as they were."""
        return config

    def notes(self, layers: Sequence[Written]) -> list[str]:
        """What a reader should know of who loads this."""
        return []
