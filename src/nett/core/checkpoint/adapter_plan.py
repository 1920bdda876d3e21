"""Fitting a LoRA adapter's keys to its base's tensors: each finds its place, or the first that does not is named."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from math import prod
from typing import Any, final

from nett.core.checkpoint import lora
from nett.core.checkpoint.base import Checkpoint
from nett.core.checkpoint.json_text import text_part
from nett.core.errors import Refused
from nett.core.match import layer_number


@final
@dataclass(frozen=True)
class Sum:
    """One tensor's change: the factors, whether B A is to be transposed, the scaling, the rank."""

    factors: lora.LowRank
    transposed: bool
    scaling: float
    rank: int


@final
class AdapterPlan:
    """What becomes of each of the base's tensors: ``sums`` and ``biases`` are added to, ``whole`` are replaced (base's
    name -> adapter's key), ``added`` are new. ``config_changes``: what the base's config must say afterwards."""

    def __init__(self, base: Checkpoint, weights: Checkpoint, options: dict[str, Any]) -> None:
        self.base, self.weights, self.options = base, weights, options
        self.sums: dict[str, Sum] = {}
        self.biases: dict[str, tuple[str, float]] = {}
        self.whole: dict[str, str] = {}
        self.added: list[str] = []
        self.config_changes: dict[str, Any] = {}
        modules, whole = lora.sort_keys(weights.path, list(weights.tensors))
        self._place_whole(whole)
        shapes = {n: t.shape for n, t in base.tensors.items()}
        shapes |= {n: weights.tensors[k].shape for n, k in self.whole.items()}
        for module, factors in modules.items():
            self._place(module, factors, shapes)
        if not self.sums and not self.whole:
            raise Refused("changes no tensor of its base", where=weights.path)
        self._mind_tying()

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
            where=self.weights.path,
            hint=f"The nearest name there is {near[0]!r}. Is it the right base?" if near else "Is it the right base?",
        )

    def _place_whole(self, whole: dict[str, str]) -> None:
        """Tensors that the adapter brings whole, also such as the base lacks."""
        saved = self.options.get("modules_to_save") or []
        for name, key in whole.items():
            info, found = self.weights.tensors[key], self._find(name)
            if found is None:
                parts = name.split(".")
                if any(s == name or s in parts or f".{s}." in f".{name}." for s in saved):
                    if not (self._is_tied() and self.options.get("ensure_weight_tying")):
                        self.whole[name] = key
                        self.added.append(name)
                    continue
                if self._is_tied() and len(info.shape) == 2 and info.shape[0] >= self._vocabulary():
                    continue  # the output side of tied embeddings, saved a second time after a resize
                raise self._unknown(key, name)
            shape = self.base.tensors[found].shape
            if info.shape != shape and (len(shape) != 2 or info.shape[1:] != shape[1:] or name.endswith(".bias")):
                raise Refused(f"{key!r} has the shape {info.shape}, the base {shape}", where=self.weights.path)
            if info.shape != shape and shape[0] != self._vocabulary():
                raise Refused(f"{key!r} has {info.shape[0]} rows, the base {shape[0]}", where=self.weights.path)
            if info.shape != shape:
                self.config_changes["vocab_size"] = info.shape[0]
            self.whole[found] = key

    def _place(self, module: str, factors: lora.LowRank, shapes: dict[str, tuple[int, ...]]) -> None:
        found = self._find(f"{module}.weight")
        if found is None:
            raise self._unknown(factors.a, f"{module}.weight")
        rank, scaling = lora.scaling_of(self.options, module, self.weights.folder / lora.CONFIG)
        a, b = self.weights.tensors[factors.a].shape, self.weights.tensors[factors.b].shape
        shape = shapes[found]
        if not self.base.tensors[found].dtype.is_float:
            raise Refused(
                f"{found!r} is stored as {self.base.tensors[found].stored}: LoRA is added to floats",
                where=self.base.path,
            )
        if len(a) < 2 or len(b) < 2 or a[0] != rank or prod(b[1:]) != rank:
            raise Refused(
                f"{factors.a!r} of shape {a} and {factors.b!r} of shape {b} do not have the rank {rank} that"
                f" {lora.CONFIG} gives them",
                where=self.weights.path,
            )
        straight = len(shape) > 1 and (b[0], prod(a[1:])) == (shape[0], prod(shape[1:]))
        turned = len(shape) == 2 and (prod(a[1:]), b[0]) == shape
        wanted = factors.embedding or bool(self.options.get("fan_in_fan_out"))
        if not (straight or turned) or (factors.embedding and not turned):
            raise Refused(
                f"{factors.a!r} of shape {a} and {factors.b!r} of shape {b} do not fit {found!r} of shape {shape}",
                where=self.weights.path,
            )
        self.sums[found] = Sum(factors, turned and (wanted or not straight), scaling, rank)
        if factors.bias:
            bias = self._find(f"{module}.bias")
            if bias is None or self.base.tensors[bias].size != self.weights.tensors[factors.bias].size:
                raise self._unknown(factors.bias, f"{module}.bias")
            self.biases[bias] = (factors.bias, scaling)

    def _is_tied(self) -> bool:
        config = self.base.config() or {}
        return bool(config.get("tie_word_embeddings", text_part(config).get("tie_word_embeddings")))

    def _vocabulary(self) -> int:
        config = self.base.config() or {}
        size = config.get("vocab_size", text_part(config).get("vocab_size"))
        return size if isinstance(size, int) else -1

    def _mind_tying(self) -> None:
        if not self._is_tied():
            return
        size = self._vocabulary()
        embeddings = [
            n
            for n in (*self.sums, *self.whole)
            if n in self.base.tensors and self.base.tensors[n].shape[:1] == (size,) and layer_number(n) is None
        ]
        if any(len(self.weights.tensors[self.whole[n]].shape) == 2 for n in self.added):
            self.config_changes["tie_word_embeddings"] = False
            return
        trained = any(n in self.sums or "vocab_size" not in self.config_changes for n in embeddings)
        if trained and not self.options.get("ensure_weight_tying"):
            raise Refused(
                f"trains {embeddings[0]!r}, which the base also uses as its output layer (tie_word_embeddings):"
                " whether that is to change too cannot be told",
                where=self.weights.path,
                hint="Untie the base first (save it with tie_word_embeddings false and a copy as its lm_head).",
            )
