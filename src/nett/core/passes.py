"""Kernels that need to know something about a whole tensor or model, yet see one chunk at a time.

A kernel is a pure generator. It yields a list of :class:`Ask`; what comes back are the answers, and what it
returns is its result for the chunk. Over plain arrays the one chunk is everything (:func:`on_arrays`). The engine
of a room runs the same kernel over every chunk once a round, keeps only what the asks gathered, and so streams
any model in bounded memory (the sans-I/O idea: a kernel computes, the engine reads).
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import NettError

Scope = Literal["tensor", "model"]
Kernel = Generator[Sequence["Ask"], list[Any], Any]


@dataclass(frozen=True)
class Chunk:
    """Elements ``start:stop`` of the flattened tensor ``tensor``; ``index`` counts chunks within an ask's scope."""

    tensor: str
    start: int
    stop: int
    index: int = 0


class Ask(ABC):
    """A question about all chunks of a scope, answered in rounds.

    Every round, each chunk adds what it sees to an accumulator (:meth:`look`), accumulators are joined
    (:meth:`join`, in any order: the result must not depend on it), and :meth:`settle` turns the sum into what is
    known next. ``known`` must be plain JSON, since it is journalled.
    """

    scope: Scope

    @abstractmethod
    def foregone(self) -> Any:
        """What is known without looking at anything, or None."""

    @property
    def by_sample(self) -> bool:
        """Whether a sample of the chunks, looked at with nothing known, helps to :meth:`guess`."""
        return False

    def guess(self, seen: Any) -> Any:
        """What the first round should go by, from what a sample showed; the answer must not depend on it."""
        return None

    @abstractmethod
    def look(self, known: Any, seen: Any, chunk: Chunk) -> Any:
        """``seen`` (None at first) with this chunk added, given what earlier rounds made ``known``."""

    @abstractmethod
    def join(self, a: Any, b: Any) -> Any:
        """Two accumulators as one."""

    @abstractmethod
    def settle(self, known: Any, seen: Any) -> tuple[Any, bool]:
        """What is known after the round, and whether that is all."""

    @abstractmethod
    def tell(self, known: Any, chunk: Chunk) -> Any:
        """The answer for one chunk."""


@final
@dataclass(frozen=True)
class Total(Ask):
    """Sums of numbers over all chunks, in float64 and in chunk order, whatever the number of threads."""

    parts: Mapping[str, float]
    scope: Scope = "tensor"

    def foregone(self) -> Any:
        return None

    def look(self, known: Any, seen: Any, chunk: Chunk) -> Any:
        seen = {} if seen is None else seen
        seen[chunk.index] = {name: float(value) for name, value in self.parts.items()}
        return seen

    def join(self, a: Any, b: Any) -> Any:
        return a | b

    def settle(self, known: Any, seen: Any) -> tuple[Any, bool]:
        total = dict.fromkeys(self.parts, 0.0)
        for index in sorted(seen):
            for name, value in seen[index].items():
                total[name] += value
        return total, True

    def tell(self, known: Any, chunk: Chunk) -> Mapping[str, float]:
        return dict(known)


@final
@dataclass(frozen=True)
class Sum(Ask):
    """Sums of arrays of one shape over all chunks of a tensor, in float64 and in chunk order."""

    parts: Mapping[str, Array]
    scope: Scope = field(default="tensor", init=False)

    def foregone(self) -> Any:
        return None

    def look(self, known: Any, seen: Any, chunk: Chunk) -> Any:
        return ({} if seen is None else seen) | {chunk.index: dict(self.parts)}

    def join(self, a: Any, b: Any) -> Any:
        return a | b

    def settle(self, known: Any, seen: Any) -> tuple[Any, bool]:
        total = {name: np.zeros(part.shape, np.float64) for name, part in self.parts.items()}
        for index in sorted(seen):
            for name, part in seen[index].items():
                total[name] += part
        return total, True

    def tell(self, known: Any, chunk: Chunk) -> Mapping[str, Array]:
        return dict(known)


@final
@dataclass(frozen=True)
class Uniform(Ask):
    """Random numbers in [0, 1), one an element, that depend on seed, stream, tensor and position only."""

    size: int
    seed: int = 0
    stream: int = 0
    scope: Scope = field(default="tensor", init=False)

    def foregone(self) -> Any:
        return {}

    def look(self, known: Any, seen: Any, chunk: Chunk) -> Any:
        raise NettError("random numbers depend on no other chunk")

    def join(self, a: Any, b: Any) -> Any:
        raise NettError("random numbers depend on no other chunk")

    def settle(self, known: Any, seen: Any) -> tuple[Any, bool]:
        raise NettError("random numbers depend on no other chunk")

    def tell(self, known: Any, chunk: Chunk) -> Array:
        word = f"{self.seed}/{self.stream}/{chunk.tensor}".encode()
        key = np.frombuffer(hashlib.blake2b(word, digest_size=16).digest(), np.uint64)
        # Philox is counter-based: it jumps to any position, so chunking cannot change what is drawn. One step
        # of its counter gives four 64-bit words, that is eight 32-bit ones.
        first = chunk.start // 8
        bits = np.random.Philox(key=key).advance(first).random_raw(-(-(chunk.start + self.size) // 8) * 4 - first * 4)
        words = bits.view(np.uint32)[chunk.start - first * 8 :][: self.size]
        return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


@dataclass(frozen=True)
class Waiting:
    """A kernel that stands at a level of asks not answered yet."""

    level: int
    asks: Sequence[Ask]


def advance(kernel: Any, told: Callable[[int, Sequence[Ask]], list[Any] | None]) -> Any:
    """Run a kernel to its result, or to the first asks that ``told`` cannot answer (a :class:`Waiting`)."""
    if not isinstance(kernel, Generator):
        return kernel
    try:
        asks, level = next(kernel), 0
        while True:
            answers = told(level, asks)
            if answers is None:
                kernel.close()
                return Waiting(level, asks)
            asks, level = kernel.send(answers), level + 1
    except StopIteration as end:
        return end.value


def _answered_alone(level: int, asks: Sequence[Ask]) -> list[Any]:
    chunk, answers = Chunk("", 0, 0), []
    for ask in asks:
        known = ask.foregone()
        done = known is not None
        while not done:
            known, done = ask.settle(known, ask.look(known, None, chunk))
        answers.append(ask.tell(known, chunk))
    return answers


def as_floats(value: Any) -> Any:
    """Arrays as flat float32 (float64 stays), lists of arrays likewise; anything else unchanged."""
    if isinstance(value, np.ndarray):
        if value.dtype == np.bool_:
            return value.ravel()
        return value.ravel().astype(np.float64 if value.dtype == np.float64 else np.float32, copy=False)
    if isinstance(value, list | tuple) and value and isinstance(value[0], np.ndarray):
        return [as_floats(v) for v in value]
    return value


def _first_shape(values: Sequence[Any]) -> tuple[int, ...]:
    for value in values:
        if isinstance(value, np.ndarray):
            return tuple(value.shape)
        if isinstance(value, list | tuple) and value and isinstance(value[0], np.ndarray):
            return tuple(value[0].shape)
    raise NettError("expected at least one array")


def _reshaped(result: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(result, Mapping):
        return {key: _reshaped(value, shape) for key, value in result.items()}
    if isinstance(result, list):
        return [_reshaped(value, shape) for value in result]
    return result.reshape(shape)


def on_arrays(kernel: Callable[..., Any], is_flat: Callable[[Mapping[str, Any]], bool]) -> Callable[..., Any]:
    """The kernel as a plain function over whole arrays. Where ``is_flat(parameters)``, it is given 1-D arrays and
    sees no shape."""

    @functools.wraps(kernel)
    def plain(*operands: Any, **parameters: Any) -> Any:
        shape = _first_shape(operands)
        for operand in operands:
            for array in operand if isinstance(operand, list | tuple) else [operand]:
                if array is not None and array.shape != shape:
                    raise NettError(f"arrays differ in shape: {array.shape} beside {shape}")
        flat = is_flat(parameters)
        given = [as_floats(o) for o in operands] if flat else list(operands)
        result = advance(kernel(*given, **parameters), _answered_alone)
        return _reshaped(result, shape) if flat else result

    plain.kernel = kernel  # type: ignore[attr-defined]
    return plain
