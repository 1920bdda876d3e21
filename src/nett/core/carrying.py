"""Asks about one chunk alone: the tensor's name, and work too costly to be done in every round.

They are answered at once, so they may stand beside asks of any scope. Over plain arrays there is no name and nothing
is kept; an engine keeps on disk what was carried, so that it is made once however many rounds the kernel takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

from nett.core.dtypes import Array
from nett.core.errors import NettError
from nett.core.passes import Ask, Chunk, Scope

Made = tuple[Array, list[float]]


@dataclass(frozen=True)
class OfChunk(Ask):
    """Abstract: what no other chunk has a say in."""

    scope: Scope = field(default="tensor", init=False)

    def foregone(self) -> Any:
        return {}

    def look(self, known: Any, seen: Any, chunk: Chunk) -> Any:
        raise NettError("the answer depends on no other chunk")

    def join(self, a: Any, b: Any) -> Any:
        raise NettError("the answer depends on no other chunk")

    def settle(self, known: Any, seen: Any) -> tuple[Any, bool]:
        raise NettError("the answer depends on no other chunk")


@final
@dataclass(frozen=True)
class TensorName(OfChunk):
    """What the tensor is called; empty for plain arrays."""

    def tell(self, known: Any, chunk: Chunk) -> str:
        return chunk.tensor


@final
@dataclass(frozen=True)
class Carried(OfChunk):
    """What a kernel carries from model to model; one such ask a kernel, of grain ``tensor``.

    ``make(array, numbers)`` goes on from what earlier models left (None and an empty list before the first) and
    returns both again: an array of the tensor's shape and type, and numbers that fit into JSON.
    """

    make: Callable[[Array | None, list[float]], Made]

    def tell(self, known: Any, chunk: Chunk) -> Made:
        return self.make(None, [])
