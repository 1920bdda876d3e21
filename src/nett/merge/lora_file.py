"""An adapter's weights as they come: spooled until all are known, then written in one file, errors taken on the way."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint import Checkpoint, OutputFile, TensorSpec
from nett.core.checkpoint.lora import PREFIX, WEIGHTS
from nett.core.checkpoint.writer import FileSpec
from nett.core.dtypes import Array, Dtype, decode, encode
from nett.core.errors import Refused
from nett.core.low_rank import factors, left_out
from nett.merge.heads import is_tied
from nett.merge.lora_layout import Place, is_embedding, is_turned, keys, output_layer, wrapped_modules
from nett.merge.lora_stream import Change

_BLOCK = 1 << 24


@final
@dataclass
class Tally:
    """What has been kept so far, and what was left out."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    square: float = 0.0
    lost: float = 0.0
    rounding: float = 0.0

    def add(self, change: Change, lost: float, **more: Any) -> None:
        self.changed.append(change.place.name)
        self.square, self.lost = self.square + change.square, self.lost + lost
        self.rounding += change.rounding
        self.rows.append(
            {
                "name": change.place.name,
                "kept": change.place.kind if change.place.has_no_factors else "factors",
                "relative_change": math.sqrt(change.square / change.size) if change.size else None,
                "relative_error": math.sqrt(lost / change.square),
                **more,
            }
        )

    @property
    def error(self) -> float:
        """Frobenius norm of what was left out, relative to that of the change."""
        return math.sqrt(self.lost / self.square) if self.square else 0.0

    @property
    def exact(self) -> bool:
        """Whether float32 arithmetic alone explains what was left out."""
        return self.lost <= self.rounding


@final
class Spool:
    """The tensors of an adapter of one rank, in a file without a name, until :meth:`write`."""

    def __init__(self, folder: Path, ground: Checkpoint, rank: int, dtype: Dtype) -> None:
        self.folder, self.ground, self.rank, self.dtype = folder, ground, rank, dtype
        self.tally = Tally()
        self.specs: list[TensorSpec] = []
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)

    def _put(self, key: str, raw: Array, dtype: Dtype, shape: tuple[int, ...]) -> None:
        self.specs.append(TensorSpec(key, dtype, shape))
        self._file.write(np.ascontiguousarray(raw).view(np.uint8).data)

    def keep(self, change: Change) -> None:
        """Add one tensor's change, in the form that its place asks for."""
        if change.raw is not None:
            self._whole(change, change.raw)
        else:
            self._factors(change)

    def _whole(self, change: Change, raw: Array) -> None:
        name = change.place.name
        info = self.ground.tensors[name]
        self._put(change.place.key, raw, info.dtype, info.shape)
        self.tally.add(change, 0.0)
        if is_embedding(change.place) and is_tied(self.ground):  # PEFT wants the other side of the tie too
            other = output_layer(self.ground)
            if other is None:
                raise Refused(
                    f"{name!r} changed, and it is tied to an output layer that nett does not know the name of",
                    where=self.ground.path,
                    hint="Leave out --as-lora, which writes the whole model.",
                )
            if other not in self.ground.tensors:
                self._put(PREFIX + other, raw, info.dtype, info.shape)

    def _factors(self, change: Change) -> None:
        assert change.delta is not None
        made = factors(change.delta, self.rank)
        left, right = (self._rounded(part) for part in (made.left, made.right))
        smallest = change.rounding / max(1, min(change.delta.shape))
        held = int(np.count_nonzero(np.square(made.singular) > smallest))
        self.tally.add(change, left_out(change.delta, left, right), rank=held)
        place = change.place
        a, b = (left.T, right.T) if place.kind == "embedding" or place.turned else (right, left)
        for key, part in zip(keys(place), (self._padded(a, 0), self._padded(b, 1)), strict=True):
            self._put(key, encode(part.ravel(), self.dtype), self.dtype, part.shape)

    def _rounded(self, part: Array) -> Array:
        return decode(encode(part.ravel(), self.dtype), self.dtype).reshape(part.shape)

    def _padded(self, part: Array, axis: int) -> Array:
        """Zeros up to the one rank that all matrices have, since not every loader knows ranks of their own."""
        missing = [(0, 0), (0, 0)]
        missing[axis] = (0, self.rank - part.shape[axis])
        return np.pad(part, missing)

    def complete(self) -> None:
        """PEFT works on modules, not tensors: factors of zero where only a bias changed, and what did not change of
        the modules that it replaces, from the base."""
        whole = {r["name"].rpartition(".")[0] for r in self.tally.rows if r["kept"] == "whole"}
        written = {spec.name for spec in self.specs}
        for row in [r for r in self.tally.rows if r["kept"] == "bias"]:
            module = row["name"].rpartition(".")[0]
            a, b = keys(Place(f"{module}.weight", module, "linear"))
            if a not in written:
                rows, columns = self.ground.tensors[f"{module}.weight"].shape
                if is_turned(self.ground):
                    rows, columns = columns, rows
                for key, shape in ((a, (self.rank, columns)), (b, (rows, self.rank))):
                    self._put(key, np.zeros(shape[0] * shape[1], self.dtype.raw), self.dtype, shape)
        for module in wrapped_modules(self.ground, whole):
            for name, info in self.ground.tensors.items():
                if name.rpartition(".")[0] == module and PREFIX + name not in written:
                    self._put(PREFIX + name, self.ground.read(name), info.dtype, info.shape)

    def write(self) -> dict[str, Any]:
        """The file, in the order of the spool; how a receipt speaks of it."""
        plan = FileSpec(WEIGHTS, tuple(self.specs), {"format": "pt"})
        file = OutputFile(self.folder / WEIGHTS, plan.nbytes)
        try:
            file.write(plan.header())
            self._file.seek(0)
            while block := self._file.read(_BLOCK):
                file.write(block)
            file.sync()
            return {"path": WEIGHTS, "bytes": file.nbytes, "sha256": file.sha256}
        finally:
            file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
