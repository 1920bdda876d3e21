"""The one shape of a format: tensors out of an answer, the dense matrix that a loader makes of them, and the config."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, final

from nett.core.blocks import Linear, Skeleton
from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.dtypes import Dtype
from nett.core.parts import joined
from nett.core.sidefiles import changed_files
from nett.core.staging import Staging
from nett.core.windows import Windows
from nett.weights.protocol import Answer, Quantised, Tensor


class Written(NamedTuple):
    """A linear layer as it was written: ``kind`` is what the format needs for the config, plain JSON."""

    linear: Linear
    kind: Mapping[str, Any]


class Run(NamedTuple):
    """What a format may look at once the layers are done: their parts on disk, the text, the kernel's parameters, the type
    of what is written (None: each tensor's own)."""

    skeleton: Skeleton
    parts: Sequence[Path]
    layers: Sequence[Written]
    calibration: Windows | None
    judging: Windows | None
    parameters: Mapping[str, Any]
    dtype: Dtype | None


@final
@dataclass(frozen=True)
class Arranged:
    """``names``: all tensors in the order of the file. The rest goes into the receipt."""

    names: Sequence[str] | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    charts: Sequence[Mapping[str, Any]] = ()


class Format(ABC):
    """Abstract; the finals are the files beside this one.

    ``added``: a layer's value is added to the compressed model's, of which nothing is written. ``stem``: what the file of
    weights is called.
    """

    name: str
    added: ClassVar[bool] = False
    stem: ClassVar[str] = "model"
    suffix: ClassVar[str] = "safetensors"
    scales: ClassVar[str | None] = None  # the type that scales must have, where there is only one

    @abstractmethod
    def tensors(self, linear: Linear, answer: Answer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Name in the checkpoint -> tensor of one layer, and its kind; Refused where the format cannot hold it."""

    @abstractmethod
    def value(self, linear: Linear, tensors: Mapping[str, Tensor], kind: Mapping[str, Any]) -> Tensor:
        """The matrix that a loader makes of the tensors, ``[out, in]``."""

    def arranged(self, run: Run) -> Arranged:
        """What is settled when all parts are there: the order of their tensors (None: block by block), and what was found."""
        return Arranged()

    def opened(self, folder: Path) -> Checkpoint:
        """The model in a folder that has no receipt yet."""
        return open_checkpoint(folder, dense=True)

    def expected(self, answer: Quantised) -> Tensor:
        """What a loader should make of numbers, computed from them and not from what is written."""
        return answer.dense()

    def join(
        self,
        parts: Sequence[Path],
        staging: Staging,
        size: int,
        layers: Sequence[Written],
        order: Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """All parts as files of at most ``size`` bytes, in an order of tensors where there is one; the parts are gone afterwards. Returns their output records."""
        return joined(parts, staging, sys.maxsize if self.added else size, self.stem, order)

    def config(self, config: dict[str, Any], layers: Sequence[Written], kept: Sequence[str]) -> dict[str, Any]:
        """``config.json`` of the result; ``kept`` are the names of all linear layers that stayed as they were."""
        return config

    def files(
        self, models: Sequence[Skeleton], layers: Sequence[Written], kept: Sequence[str], dtype: Dtype | None
    ) -> tuple[dict[str, bytes], list[str]]:
        """The small files beside the weights: config (changed) and tokenizer; and what is to be said of them."""
        return changed_files(models[0].checkpoint, dtype, lambda config: self.config(config, layers, kept))

    def notes(self, layers: Sequence[Written]) -> list[str]:
        """What a reader should know of who loads this."""
        return []
