"""A PEFT LoRA adapter over its base, as a checkpoint: the sum is made while streaming, for the rows asked for."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint import lora
from nett.core.checkpoint.adapter_plan import AdapterPlan
from nett.core.checkpoint.base import Checkpoint, TensorInfo
from nett.core.checkpoint.json_text import text_part
from nett.core.dtypes import Array, encode
from nett.core.errors import Refused

_KEPT = 4  # modules whose factors stay in memory


@final
class AdapterCheckpoint(Checkpoint):
    """The base's tensors with the adapter added.

    ``values`` are W + scaling B A in float32 (float64 over a float64 base); ``read`` rounds them to the base's type.
    """

    format = "peft"

    def __init__(self, path: Path, base: Checkpoint, weights: Checkpoint, config: dict[str, Any]) -> None:
        self.path, self.base = path, base
        self._weights, self.notes = weights, base.notes
        self.files = (*base.files, *weights.files, path / lora.CONFIG)
        self._plan = AdapterPlan(base, weights, config)
        self._sums, self._biases, self._whole = self._plan.sums, self._plan.biases, self._plan.whole
        self._cache: OrderedDict[str, tuple[Array, Array]] = OrderedDict()
        self._lock = threading.Lock()
        self.tensors = {n: self._info(n, t) for n, t in base.tensors.items()}
        for name in self._plan.added:
            self.tensors[name] = replace(weights.tensors[self._whole[name]], name=name, file=None, offset=-1)

    def _info(self, name: str, info: TensorInfo) -> TensorInfo:
        if name in self._whole:
            shape = self._weights.tensors[self._whole[name]].shape
            nbytes = prod(shape) * info.dtype.bytes
            return TensorInfo(name, info.dtype, shape, info.dtype.name, nbytes)
        if name in self._sums or name in self._biases:
            return replace(info, stored=f"{info.stored}+LoRA", file=None, offset=-1)
        return info

    def _matrices(self, name: str) -> tuple[Array, Array]:
        """The factors of a tensor as left (rows, rank) and right (rank, columns)."""
        with self._lock:
            if name in self._cache:
                self._cache.move_to_end(name)
                return self._cache[name]
        change = self._sums[name]
        a = self._weights.values(change.factors.a).astype(np.float32, copy=False).reshape(change.rank, -1)
        b = self._weights.values(change.factors.b).astype(np.float32, copy=False).reshape(-1, change.rank)
        left, right = (a.T, b.T) if change.transposed else (b, a)
        made = np.ascontiguousarray(left), np.ascontiguousarray(right)
        with self._lock:
            self._cache[name] = made
            while len(self._cache) > _KEPT:
                self._cache.popitem(last=False)
        return made

    def values(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        info = self.tensors[name]
        stop = info.size if stop is None else stop
        source, key = (self._weights, self._whole[name]) if name in self._whole else (self.base, name)
        values = source.values(key, start, stop)
        if name in self._biases:
            bias, scaling = self._biases[name]
            change = self._weights.values(bias, start, stop)
            return np.asarray(values + values.dtype.type(scaling) * change.astype(values.dtype, copy=False))
        if name in self._sums and start < stop:
            left, right = self._matrices(name)
            left = left[start // right.shape[1] :].astype(values.dtype, copy=False)
            right = right.astype(values.dtype, copy=False)
            lora.add_product(values, left, right, values.dtype.type(self._sums[name].scaling), start)
        return values

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        if name not in self._sums and name not in self._biases and name not in self._whole:
            return self.base.read(name, start, stop)
        if self.tensors[name].dtype.is_float:
            return encode(self.values(name, start, stop), self.tensors[name].dtype)
        return self._weights.read(self._whole[name], start, stop)

    @property
    def reference(self) -> str:
        return f"{self.base.reference}+{os.path.abspath(self.path)}"

    @property
    def folder(self) -> Path:
        """The base's: its config, and its tokenizer unless the adapter folder has one of its own."""
        return self.base.folder

    def config(self) -> dict[str, Any] | None:
        """The base's, with what the adapter changes of it."""
        config = self.base.config()
        changes = self._plan.config_changes
        if config is None or not changes:
            return config
        text = text_part(config)
        if isinstance(config.get("text_config"), dict):
            config["text_config"] = text | {k: v for k, v in changes.items() if k in text}
        return config | changes

    def close(self) -> None:
        self._weights.close()
        self.base.close()


def open_adapter(path: Path, base: str | Path | None = None, *, dense: bool = False) -> AdapterCheckpoint:
    """The adapter in folder ``path`` over ``base``, or over the base that it names if that lies on this machine.

    ``dense``: of the base, as in :func:`~nett.core.checkpoint.opening.open_checkpoint`.
    """
    from nett.core.checkpoint.opening import open_checkpoint
    from nett.core.checkpoint.safetensors import SafetensorsCheckpoint

    config = lora.read_config(path)
    weights: Checkpoint
    if (path / lora.WEIGHTS).is_file():
        weights = SafetensorsCheckpoint(path, [path / lora.WEIGHTS])
    elif (path / "adapter_model.bin").is_file():
        from nett.core.checkpoint.pickle import PickleCheckpoint

        weights = PickleCheckpoint(path, [path / "adapter_model.bin"])
    else:
        raise Refused("holds an adapter_config.json but no adapter_model.safetensors or .bin", where=path)
    ground = open_checkpoint(base if base is not None else _base_of(path, config), dense=dense)
    return AdapterCheckpoint(path, ground, weights, config)


def _base_of(path: Path, config: dict[str, Any]) -> Path:
    named = config.get("base_model_name_or_path")
    if isinstance(named, str) and named:
        for place in (Path(named), path / named):
            if not os.path.exists(place):  # unlike Path's, false for names that no file can have
                continue
            if place.resolve() != path.resolve() and not (place / lora.CONFIG).exists():
                return place
    raise Refused(
        f"is an adapter for {named!r}, which does not lie on this machine",
        where=path,
        hint=f"Name the base before it: BASE+{path}",
    )
