"""Caches of transformers' own under this room's ledger: the tensors that their layers hold, counted."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any


def counted(made: Any) -> Any:
    """The same cache, its layers with ``seen``, ``held``, ``nbytes`` and ``full_nbytes``."""
    for layer in made.layers:
        kind: Any = type(layer)
        layer.__class__ = counted_class(kind)
    return made


@cache
def counted_class(kind: Any) -> Any:
    """A subclass of a layer class that changes nothing of it."""

    class CountedLayer(kind):  # type: ignore[misc] # transformers has no types
        token_bytes = 0  # of one token's keys and values as they came

        def update(self, key_states: Any, value_states: Any, *args: Any, **more: Any) -> Any:
            rows, heads, _, width = key_states.shape
            wide = width + value_states.shape[-1]
            self.token_bytes = rows * heads * wide * key_states.element_size()
            return super().update(key_states, value_states, *args, **more)

        def state(self) -> dict[str, Any]:
            """All that its own class keeps, and the size of a token."""
            return {"token_bytes": self.token_bytes} | {
                name: None if value is None else str(value) if name in ("dtype", "device") else value
                for name, value in vars(self).items()
            }

        def take_state(self, state: Mapping[str, Any]) -> None:
            import torch

            for name, value in state.items():
                setattr(self, name, getattr(torch, value.removeprefix("torch.")) if name == "dtype" else value)
            self.device = self.keys.device

        @property
        def seen(self) -> int:
            return int(self.get_seq_length())

        @property
        def held(self) -> int:
            return self.seen

        @property
        def nbytes(self) -> int:
            """Bytes of all tensors, also those within tuples."""
            return sum(_bytes(value) for value in vars(self).values())

        @property
        def full_nbytes(self) -> int:
            return self.seen * self.token_bytes

    CountedLayer.__name__ = kind.__name__
    return CountedLayer


def _bytes(value: Any) -> int:
    if isinstance(value, tuple | list):
        return sum(map(_bytes, value))
    return int(value.numel() * value.element_size()) if hasattr(value, "element_size") else 0
