"""The container of a :class:`~nett.weights.protocol.Stack` a layer: which bytes a budget takes, and the model at one.

A folder with config and tokenizer, ``signs.json`` and ``signs/signs*.safetensors``. The tensors lie in the order in which they are
taken: what is not stacked, every layer's scale and first block, then block by block as ``order`` says.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from nett.core.checkpoint.json_text import read_json_object
from nett.core.checkpoint.writer import byte_size
from nett.core.dtypes import Array, dtype_named, encode
from nett.core.errors import Refused
from nett.weights.protocol import Signs
from nett.weights.sign_terms import composed, term_bytes

NAME, STEM = "signs.json", "signs/signs"
_KEPT = 3  # composed matrices that stay in memory


@final
@dataclass(frozen=True)
class Layer:
    """A stacked layer: its ``module``, the type of its weight before, its sizes, the rank and number of its blocks."""

    module: str
    dtype: str
    rows: int
    columns: int
    rank: int
    blocks: int
    errors: tuple[float, ...]

    @property
    def block_bytes(self) -> int:
        return term_bytes(self.rows, self.columns, self.rank)

    def names(self, block: int) -> tuple[str, str, str]:
        """The tensors of a block: signs, left, right."""
        stem = f"{self.module}.{block}"
        return f"{stem}.signs", f"{stem}.left", f"{stem}.right"

    @property
    def scale(self) -> str:
        return f"{self.module}.scale"


@final
@dataclass(frozen=True)
class Plan:
    """All ``layers``, and the ``order`` in which layers (by number) get their second and further blocks."""

    layers: tuple[Layer, ...]
    order: tuple[int, ...]

    def tensors(self) -> list[str]:
        """Names of what belongs to layers, in the order of the file."""
        found = [name for layer in self.layers for name in (layer.scale, *layer.names(0))]
        seen = Counter(range(len(self.layers)))
        for number in self.order:
            found += self.layers[number].names(seen[number])
            seen[number] += 1
        return found

    def steps(self, ground: int) -> Array:
        """Bytes that are taken with no further block, with one, two, …; ``ground``: those of all that is not stacked."""
        first = ground + sum(2 * layer.columns + layer.block_bytes for layer in self.layers)
        more = [self.layers[number].block_bytes for number in self.order]
        return np.cumsum([first, *more], dtype=np.int64)

    def counts(self, taken: int) -> list[int]:
        """Blocks of each layer when ``taken`` further blocks are taken."""
        more = Counter(self.order[:taken])
        return [1 + more[number] for number in range(len(self.layers))]

    def as_bytes(self) -> bytes:
        """``signs.json``."""
        said = {"format": 1, "layers": [asdict(layer) for layer in self.layers], "order": list(self.order)}
        return (json.dumps(said, separators=(",", ":")) + "\n").encode()


def read_plan(folder: Path) -> Plan:
    """The plan of a container; Refused where it is none, or no longer what was written."""
    said = read_json_object(folder / NAME)
    try:
        layers = tuple(Layer(**(row | {"errors": tuple(row["errors"])})) for row in said["layers"])
        plan = Plan(layers, tuple(int(n) for n in said["order"]))
        per_layer = Counter(plan.order)
        ok = said["format"] == 1 and all(per_layer[i] == one.blocks - 1 for i, one in enumerate(layers))
        if not ok or len(plan.order) != sum(one.blocks - 1 for one in layers):
            raise ValueError("its order does not name every block once")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refused(f"is no plan of a stack: {error}", where=folder / NAME) from error
    return plan


@final
class StackCheckpoint(Checkpoint):
    """The model that the blocks within a budget stand for; layers are composed as they are read."""

    format = "bitstack"

    def __init__(self, path: Path, plan: Plan, sources: Sequence[Checkpoint], taken: int | None = None) -> None:
        self.path, self.plan, self._sources = path, plan, list(sources)
        self.files = tuple(f for s in sources for f in s.files)
        self._where = {name: s for s in sources for name in s.tensors}
        missing = [n for n in plan.tensors() if n not in self._where]
        if missing:
            raise Refused(f"lacks {missing[0]!r}, which its plan names", where=path)
        stacked = set(plan.tensors())
        ground = {n: s.tensors[n] for n, s in self._where.items() if n not in stacked}
        self.ground = sum(t.nbytes for t in ground.values())
        self.taken = len(plan.order) if taken is None else taken
        self.counts = plan.counts(self.taken)
        self._layers = {f"{layer.module}.weight": number for number, layer in enumerate(plan.layers)}
        self._made: OrderedDict[str, Array] = OrderedDict()
        self._lock = threading.Lock()
        self.tensors = ground | {n: self._info(n, number) for n, number in self._layers.items()}

    def _info(self, name: str, number: int) -> TensorInfo:
        layer, count = self.plan.layers[number], self.counts[number]
        nbytes = 2 * layer.columns + count * layer.block_bytes
        return TensorInfo(name, dtype_named(layer.dtype), (layer.rows, layer.columns), f"{count} blocks", nbytes)

    def term(self, layer: Layer, block: int, device: Any = "cpu") -> Signs:
        """A block as it lies in the file."""
        return Signs(*(self.stored(name).to(device) for name in layer.names(block)))

    def stored(self, name: str) -> Any:
        """A stored tensor in torch."""
        import torch

        source = self._where[name]
        info = source.tensors[name]
        raw = torch.from_numpy(source.read(name).view(np.uint8))
        return raw.view(getattr(torch, info.dtype.alias)).reshape(info.shape)

    def values(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        if name not in self._layers:
            return self._where[name].values(name, start, stop)
        return np.array(self._whole(name)[start:stop])

    def _whole(self, name: str) -> Array:
        """A composed matrix, flattened."""
        with self._lock:
            if name in self._made:
                self._made.move_to_end(name)
                return self._made[name]
        number = self._layers[name]
        layer = self.plan.layers[number]
        terms = [self.term(layer, block) for block in range(self.counts[number])]
        made: Array = composed(self.stored(layer.scale), terms).numpy().ravel()
        with self._lock:
            self._made[name] = made
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
        return made

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        if name not in self._layers:
            return self._where[name].read(name, start, stop)
        return encode(self.values(name, start, stop), self.tensors[name].dtype)

    @property
    def reference(self) -> str:
        whole = super().reference
        return whole if self.taken == len(self.plan.order) else f"{whole}/{self.nbytes}"

    def close(self) -> None:
        for source in self._sources:
            source.close()


def within(plan: Plan, ground: int, budget: str | int, where: Path) -> int:
    """How many further blocks fit into a budget (``90MB``, or bytes); Refused below the smallest."""
    size = byte_size(str(budget))
    steps = plan.steps(ground)
    if size < steps[0]:
        raise Refused(
            f"budget {budget} is {size:,} bytes, and the smallest model here takes {steps[0]:,}",
            where=where,
            hint=f"Give {steps[0]} or more; beyond {steps[-1]:,} nothing is gained.",
        )
    return int(np.searchsorted(steps, size, side="right")) - 1


def open_stack(folder: Path, budget: str | int | None = None) -> StackCheckpoint:
    """A container's model at a budget; all blocks without one."""
    plan = read_plan(folder)
    files = sorted((folder / STEM).parent.glob("*.safetensors"))
    if not files:
        raise Refused("holds no file of blocks", where=(folder / STEM).parent)
    sources = [open_checkpoint(f) for f in files]
    try:
        found = StackCheckpoint(folder, plan, sources)
        if budget is None:
            return found
        return StackCheckpoint(folder, plan, sources, within(plan, found.ground, budget, folder))
    except BaseException:
        for source in sources:
            source.close()
        raise


def layers_of(records: Sequence[Mapping[str, Any]]) -> tuple[Layer, ...]:
    """From what the journal says of each stacked layer."""
    return tuple(Layer(**(dict(r) | {"errors": tuple(r["errors"])})) for r in records)
