"""A PEFT LoRA adapter over its base, as a checkpoint: the sum is made while streaming, for the rows asked for."""

from __future__ import annotations

import difflib
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint import lora
from nett.core.checkpoint.base import Checkpoint, TensorInfo
from nett.core.dtypes import Array, encode
from nett.core.errors import Refused

_KEPT = 4  # modules whose factors stay in memory


@final
@dataclass(frozen=True)
class _Sum:
    """One tensor's change: the factors, whether B A is to be transposed, the scaling, the rank."""

    factors: lora.LowRank
    transposed: bool
    scaling: float
    rank: int


@final
class AdapterCheckpoint(Checkpoint):
    """The base's tensors with the adapter added.

    ``values`` are W + scaling B A in float32 (float64 over a float64 base); ``read`` rounds them to the base's type.
    """

    format = "peft"

    def __init__(self, path: Path, base: Checkpoint, weights: Checkpoint, config: dict[str, Any]) -> None:
        self.path, self.base = path, base
        self._weights, self._options = weights, config
        self.files = (*base.files, *weights.files, path / lora.CONFIG)
        self._sums: dict[str, _Sum] = {}
        self._biases: dict[str, tuple[str, float]] = {}
        self._whole: dict[str, str] = {}
        self._changes: dict[str, Any] = {}  # of the config
        self._cache: OrderedDict[str, tuple[Array, Array]] = OrderedDict()
        self._lock = threading.Lock()
        modules, whole = lora.sort_keys(weights.path, {n: t.shape for n, t in weights.tensors.items()})
        added = self._place_whole(whole)
        shapes = {n: t.shape for n, t in base.tensors.items()}
        shapes |= {n: weights.tensors[k].shape for n, k in self._whole.items()}
        for module, factors in modules.items():
            self._place(module, factors, shapes)
        if not self._sums and not self._whole:
            raise Refused("changes no tensor of its base", where=weights.path)
        self._mind_tying(added)
        self.tensors = {n: self._info(n, t) for n, t in base.tensors.items()}
        for name in added:
            self.tensors[name] = replace(weights.tensors[self._whole[name]], name=name)

    # -- fitting the adapter's keys to the base's tensors --------------------------------------------------------

    def _find(self, name: str) -> str | None:
        """The base's name for a tensor. Models saved without their head lack the first part of their names."""
        tensors = self.base.tensors
        if name in tensors:
            return name
        without = name.partition(".")[2]
        if without in tensors:
            return without
        starts = {n.partition(".")[0] for n in tensors}
        longer = [f"{start}.{name}" for start in sorted(starts) if f"{start}.{name}" in tensors]
        return longer[0] if len(longer) == 1 else None

    def _unknown(self, key: str, name: str) -> Refused:
        near = difflib.get_close_matches(name, self.base.tensors, n=1)
        return Refused(
            f"{key!r} is for {name!r}, which the base {self.base.path} does not hold",
            where=self._weights.path,
            hint=f"The nearest name there is {near[0]!r}. Is it the right base?" if near else "Is it the right base?",
        )

    def _place_whole(self, whole: dict[str, str]) -> list[str]:
        """Tensors that the adapter brings whole. Returns the names of those that the base lacks."""
        added = []
        saved = self._options.get("modules_to_save") or []
        for name, key in whole.items():
            info, found = self._weights.tensors[key], self._find(name)
            if found is None:
                parts = name.split(".")
                if any(s == name or s in parts or f".{s}." in f".{name}." for s in saved):
                    if not (self._is_tied() and self._options.get("ensure_weight_tying")):
                        self._whole[name] = key
                        added.append(name)
                    continue
                if self._is_tied() and len(info.shape) == 2 and info.shape[0] >= self._vocabulary():
                    continue  # the output side of tied embeddings, saved a second time after a resize
                raise self._unknown(key, name)
            shape = self.base.tensors[found].shape
            if info.shape != shape and (len(shape) != 2 or info.shape[1:] != shape[1:] or name.endswith(".bias")):
                raise Refused(f"{key!r} has the shape {info.shape}, the base {shape}", where=self._weights.path)
            if info.shape != shape and shape[0] != self._vocabulary():
                raise Refused(f"{key!r} has {info.shape[0]} rows, the base {shape[0]}", where=self._weights.path)
            if info.shape != shape:
                self._changes["vocab_size"] = info.shape[0]
            self._whole[found] = key
        return added

    def _place(self, module: str, factors: lora.LowRank, shapes: dict[str, tuple[int, ...]]) -> None:
        found = self._find(f"{module}.weight")
        if found is None:
            raise self._unknown(factors.a, f"{module}.weight")
        rank, scaling = lora.scaling_of(self._options, module, self.path / lora.CONFIG)
        a, b = self._weights.tensors[factors.a].shape, self._weights.tensors[factors.b].shape
        shape = shapes[found]
        if len(a) < 2 or len(b) < 2 or a[0] != rank or prod(b[1:]) != rank:
            raise Refused(
                f"{factors.a!r} of shape {a} and {factors.b!r} of shape {b} do not have the rank {rank} that"
                f" {lora.CONFIG} gives them",
                where=self._weights.path,
            )
        straight = (b[0], prod(a[1:])) == (shape[0], prod(shape[1:]))
        turned = len(shape) == 2 and (prod(a[1:]), b[0]) == shape
        wanted = factors.embedding or bool(self._options.get("fan_in_fan_out"))
        if not (straight or turned) or (factors.embedding and not turned):
            raise Refused(
                f"{factors.a!r} of shape {a} and {factors.b!r} of shape {b} do not fit {found!r} of shape {shape}",
                where=self._weights.path,
            )
        self._sums[found] = _Sum(factors, turned and (wanted or not straight), scaling, rank)
        if factors.bias:
            bias = self._find(f"{module}.bias")
            if bias is None or self.base.tensors[bias].size != self._weights.tensors[factors.bias].size:
                raise self._unknown(factors.bias, f"{module}.bias")
            self._biases[bias] = (factors.bias, scaling)

    # -- embeddings that the base uses twice ---------------------------------------------------------------------

    def _is_tied(self) -> bool:
        config = self.base.config() or {}
        return bool(config.get("tie_word_embeddings", config.get("text_config", {}).get("tie_word_embeddings")))

    def _vocabulary(self) -> int:
        config = self.base.config() or {}
        size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
        return size if isinstance(size, int) else -1

    def _mind_tying(self, added: list[str]) -> None:
        if not self._is_tied():
            return
        size = self._vocabulary()
        embeddings = [
            n
            for n in (*self._sums, *self._whole)
            if n in self.base.tensors and self.base.tensors[n].shape[:1] == (size,)
        ]
        if any(len(self._weights.tensors[self._whole[n]].shape) == 2 for n in added):
            self._changes["tie_word_embeddings"] = False
        elif any(n in self._sums or "vocab_size" not in self._changes for n in embeddings):
            if not self._options.get("ensure_weight_tying"):
                raise Refused(
                    f"trains {embeddings[0]!r}, which the base also uses as its output layer (tie_word_embeddings):"
                    " whether that is to change too cannot be told",
                    where=self.path,
                    hint="Untie the base first (save it with tie_word_embeddings false and a copy as its lm_head).",
                )

    # -- reading -------------------------------------------------------------------------------------------------

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
    def folder(self) -> Path:
        """The base's: its config, and its tokenizer unless the adapter folder has one of its own."""
        return self.base.folder

    def config(self) -> dict[str, Any] | None:
        """The base's, with what the adapter changes of it."""
        config = self.base.config()
        if config is None or not self._changes:
            return config
        inner = {k: v for k, v in self._changes.items() if k in config.get("text_config", {})}
        if inner:
            config["text_config"] = config["text_config"] | inner
        return config | self._changes

    def close(self) -> None:
        self._weights.close()
        self.base.close()


def open_adapter(path: Path, base: str | Path | None = None) -> AdapterCheckpoint:
    """The adapter in folder ``path`` over ``base``, or over the base that it names if that lies on this machine."""
    from nett.core.checkpoint.opening import open_checkpoint
    from nett.core.checkpoint.safetensors import SafetensorsCheckpoint

    config = lora.read_config(path)
    weights: Checkpoint
    if (path / "adapter_model.safetensors").is_file():
        weights = SafetensorsCheckpoint(path, [path / "adapter_model.safetensors"])
    elif (path / "adapter_model.bin").is_file():
        from nett.core.checkpoint.pickle import PickleCheckpoint

        weights = PickleCheckpoint(path, [path / "adapter_model.bin"])
    else:
        raise Refused("holds an adapter_config.json but no adapter_model.safetensors or .bin", where=path)
    return AdapterCheckpoint(
        path, open_checkpoint(base if base is not None else _base_of(path, config)), weights, config
    )


def _base_of(path: Path, config: dict[str, Any]) -> Path:
    named = config.get("base_model_name_or_path")
    if isinstance(named, str) and named:
        for place in (Path(named), path / named):
            if place.exists() and place.resolve() != path.resolve() and not (place / lora.CONFIG).exists():
                return place
    raise Refused(
        f"is an adapter for {named!r}, which does not lie on this machine",
        where=path,
        hint=f"Name the base before it: BASE+{path}",
    )
