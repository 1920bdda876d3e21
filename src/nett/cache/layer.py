"""One layer's cache under a policy: slots, what each stands for, and what attention told of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from nett.cache.attention import asked_length
from nett.cache.packing import bytes_of, decoded
from nett.cache.shrinking import CARRIED, Shrinking

if TYPE_CHECKING:
    from nett.cache.policy import Policy
    from nett.cache.protocol import Coded

HELD = ("keys", "values", "valid", "tokens", "queries", "counts", *CARRIED)  # tensors, rows first


@cache
def layer_class() -> Any:
    """A layer class of transformers' own kind; made on first use, since transformers is imported for it."""
    import torch
    from transformers.cache_utils import DynamicLayer

    class PolicyLayer(Shrinking, DynamicLayer):  # type: ignore[misc] # transformers has no types
        """``keys``, ``values`` ``[b, h, m, d]``; ``seen``: tokens so far, which positions follow; ``valid`` bool ``[b, m]``
        or None where all are: slots that hold something."""

        def __init__(self, policy: Policy, layers: int, left: bool = False, left_layers: int = 0) -> None:
            super().__init__()
            self.policy, self.layers = policy, layers
            self.left, self.left_layers = left, left_layers  # whether it holds all tokens, and how many layers do
            self.seen = 0
            self._fresh()

        keys: Any
        values: Any

        def _fresh(self) -> None:
            self.valid: Any = None
            self.sizes: Any = None
            self.mass: Any = None
            self.reach: Any = None
            self.at: Any = None  # position of the last token in a slot, where queries are kept
            self.queries: Any = None  # [b, hq, w, d], of the last tokens
            self.there: Any = None  # bool [b, h, m], None where every head has all slots
            self.packed: Any = None  # then, between two tokens, what of them is held, by name: [t, d] or [t]
            self.counts: Any = None  # and how many of these each head has, int [b, h]
            self.asked: Any = None  # sums of queries before rotation, see nett.cache.expecting
            self.given: Any = None  # what came to attention, while it is computed
            self.scaling: float | None = None
            self.chunks: list[Coded] = []  # tokens that are held as codes, before those in keys and values
            self.coming = 0
            self.done = False  # with what is done once, after the prompt
            self.tokens: Any = None  # [b], without padding; None where they are ``seen``

        # -- what transformers asks ---------------------------------------------------------------------------

        def update(self, key_states: Any, value_states: Any, *args: Any, **more: Any) -> tuple[Any, Any]:
            self._unpack()
            self.coming = int(key_states.shape[-2])
            self.seen += self.coming
            keys, values = super().update(key_states, value_states)
            if self.chunks:
                keys, values = (
                    torch.cat([*(self._decoded(getattr(c, n)) for c in self.chunks), held], -2)
                    for n, held in (("keys", keys), ("values", values))
                )
            for name in CARRIED:
                held = getattr(self, name)
                if held is not None:
                    new = self._come_with(name, key_states.shape[:3], key_states.device)
                    setattr(self, name, torch.cat([held, new], -1))
            keys = keys.view_as(keys)  # an object of its own, to carry the layer to where attention is computed
            keys.nett_layer = self
            return keys, values

        def _come_with(self, name: str, shape: Any, device: Any) -> Any:
            """What new slots carry: a size of one, their position, and no attention yet."""
            if name == "at":
                places = torch.arange(self.seen - shape[-1], self.seen, device=device, dtype=torch.float32)
                return places.expand(shape)
            if name == "there":
                return torch.ones(shape, dtype=torch.bool, device=device)
            return torch.full(shape, float(name == "sizes"), device=device)

        def _pack(self) -> None:
            """Where heads hold unequally many slots, hold those alone, one after the other; for attention they are put side by
            side, with nothing before those of heads that hold fewer."""
            if self.there is None:
                return
            names = [n for n in ("keys", "values", *CARRIED) if n != "there" and getattr(self, n) is not None]
            self.packed = {name: getattr(self, name)[self.there] for name in names}
            self.counts = self.there.sum(-1)
            self.keys, self.values = (t[:, :, :0].clone() for t in (self.keys, self.values))
            for name in CARRIED:
                setattr(self, name, None)

        def _unpack(self) -> None:
            if self.packed is None:
                return
            most = int(self.counts.max())
            self.there = torch.arange(most, device=self.counts.device) >= most - self.counts[..., None]
            for name, flat in self.packed.items():
                empty = flat.new_zeros(*self.there.shape, *flat.shape[1:])
                empty[self.there] = flat
                setattr(self, name, empty)
            self.packed = self.counts = None

        def get_seq_length(self) -> int:
            return self.seen

        @property
        def held(self) -> int:
            """Slots, of numbers and of codes."""
            if self.packed is not None:
                return int(self.counts.max())
            here = int(self.keys.shape[-2]) if self.is_initialized and self.keys.numel() else 0
            return here + sum(c.keys.shape[1] for c in self.chunks)

        def _decoded(self, grid: Any) -> Any:
            return decoded(grid).reshape(*self.keys.shape[:2], -1, grid.shape[-1])

        def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
            return self.held + asked_length(query_length), self.seen - self.held

        def crop(self, tokens_to_remove: int) -> None:
            if not self.plain or self.chunks:
                raise NotImplementedError("a cache that was made smaller cannot be cropped")
            super().crop(tokens_to_remove)
            self.seen += tokens_to_remove

        def reset(self) -> None:
            self.keys, self.values = None, None
            self.is_initialized, self.seen = False, 0
            self._fresh()

        def reorder_cache(self, beam_idx: Any) -> None:
            self._rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

        def batch_repeat_interleave(self, repeats: int) -> None:
            self._rows(lambda t: t.repeat_interleave(repeats, dim=0))

        def batch_select_indices(self, indices: Any) -> None:
            self._rows(lambda t: t[indices])

        def _rows(self, change: Any) -> None:
            if self.chunks:
                raise NotImplementedError("rows of a cache that is held as codes cannot be moved")
            self._unpack()
            for name in HELD:
                held = getattr(self, name)
                if held is not None and held.numel():
                    setattr(self, name, change(held))
            self._pack()
            if self.asked is not None:
                self.asked = tuple(change(t) for t in self.asked)

        # -- to a file and back ---------------------------------------------------------------------------------

        def state(self) -> dict[str, Any]:
            """All that decides how it goes on."""
            names = (*HELD, "packed", "asked", "chunks", "seen", "scaling", "done")
            return {name: getattr(self, name) for name in names}

        def take_state(self, state: Mapping[str, Any]) -> None:
            self._fresh()
            self.lazy_initialization(state["keys"], state["values"])
            for name, value in state.items():
                setattr(self, name, value)
            self.chunks = list(self.chunks)

        @property
        def full_nbytes(self) -> int:
            """Bytes that all tokens' keys and values would take."""
            wide = self.keys.shape[-1] + self.values.shape[-1]
            return int(self.keys.shape[0] * self.keys.shape[1] * self.seen * wide * self.keys.element_size())

        @property
        def nbytes(self) -> int:
            """Bytes of all that is held."""
            held = [*(getattr(self, n) for n in HELD), *(self.packed or {}).values(), *(self.asked or ())]
            codes = sum(bytes_of(g) for c in self.chunks for g in (c.keys, c.values))
            return int(codes + sum(t.numel() * t.element_size() for t in held if t is not None))

    return PolicyLayer
