"""What is stored of a prompt, brought to where it stands now, layer by layer while the model computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from nett.cache.chunk_plan import Part
    from nett.cache.chunk_store import chunk_store


@final
class Held:
    """Of each layer keys and values ``[1, h, n, d]`` with the stored parts at their places.
    Parts on the disk are read, in a thread, in the order of the layers while the model computes those before."""

    def __init__(self, store: chunk_store, parts: Sequence[Part], length: int) -> None:
        self.store, self.length = store, length
        device = store.model.device
        self.placed: list[tuple[Part, Callable[[int], Any], Any]] = []
        self.read: dict[int, list[tuple[Any, Any]]] = {}  # of parts from the disk, by their number
        for number, part in enumerate(parts):
            if part.variant is None or len(part.chosen) == len(part.ids):
                continue
            self.placed.append((part, self._reader(number, part, device), self._turn(part)))
        self._pool = ThreadPoolExecutor(1) if self.read else None
        self._coming: list[Future[Any]] = (
            [self._pool.submit(self._layer, k) for k in range(store.layers)] if self._pool else []
        )

    def _reader(self, number: int, part: Part, device: Any) -> Callable[[int], Any]:
        assert part.variant is not None
        inner: Callable[[int], Any] = part.variant.reader(device)
        if part.variant.pairs is not None:
            return inner
        noted = self.read.setdefault(number, [])

        def read(layer: int) -> Any:
            pair = inner(layer)
            if layer == len(noted):
                noted.append(pair)
            return pair

        return read

    def _turn(self, part: Part) -> Any:
        import torch

        assert part.variant is not None
        was = part.variant.told.start
        if was == part.start:
            return None
        return self.store.mover.turn(torch.arange(was, was + len(part.ids)), torch.arange(part.start, part.end))

    def layer(self, number: int) -> tuple[Any, Any] | None:
        """Keys and values of a layer, to be written to; None where nothing is stored."""
        if not self.placed:
            return None
        made: tuple[Any, Any] = self._coming[number].result() if self._coming else self._layer(number)
        return made

    def _layer(self, number: int) -> tuple[Any, Any]:
        keys = values = None
        for part, read, turn in self.placed:
            k, v = read(number)
            if keys is None:
                keys, values = (t.new_zeros(1, t.shape[0], self.length, t.shape[-1]) for t in (k, v))
            keys[0, :, part.start : part.end] = k if turn is None else self.store.mover.moved(k, turn, number)
            values[0, :, part.start : part.end] = v  # type: ignore[index]
        assert keys is not None
        return keys, values

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
