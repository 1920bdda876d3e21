"""A prompt's cache from stored chunks and from tokens that are computed now, in one run of the model.

The tokens that are computed go through all layers together, each at its own place. In every layer their keys and values
take their places among those that are stored, moved to where they stand now, and each token attends to all up to itself.
Where all tokens are computed, or all from some place on, that is the model's own prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, final

import numpy as np

from nett.cache.attention import weights
from nett.cache.chunk_files import Told
from nett.cache.chunk_holding import Held
from nett.cache.chunk_scores import Attended
from nett.cache.recording import attending
from nett.core.dtypes import Array

if TYPE_CHECKING:
    from nett.cache.chunk_plan import Part
    from nett.cache.chunk_store import chunk_store


class _Enough(Exception):
    """Leaves a model's run with the keys and values that were wanted."""


@cache
def _scatter_class() -> Any:
    from transformers.cache_utils import DynamicLayer

    class ScatterLayer(DynamicLayer):  # type: ignore[misc] # transformers has no types
        """A layer whose first update puts what comes at its ``places`` among what is held."""

        plain = True

        def __init__(self, index: int, held: Held, places: Any, before: int, noted: Any) -> None:
            super().__init__()
            self.index, self.held, self.places, self.before, self.noted = index, held, places, before, noted
            self.queries: Any = None
            self.scaling: float | None = None

        def update(self, key_states: Any, value_states: Any, *args: Any, **more: Any) -> tuple[Any, Any]:
            self.lazy_initialization(key_states, value_states)
            here = self.held.layer(self.index)
            if here is None:
                self.keys, self.values = key_states, value_states
            else:
                self.keys, self.values = here
                self.keys[:, :, self.places] = key_states
                self.values[:, :, self.places] = value_states
            keys = self.keys.view_as(self.keys)  # an object of its own: it carries the layer to attention
            keys.nett_layer = self
            return keys, self.values

        def attended(self, query: Any, mask: Any, scaling: float | None) -> None:
            self.scaling = scaling
            if self.noted is not None:
                self.queries = query[:, :, self.noted]

        def get_seq_length(self) -> int:
            return self.before

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.before + query_length, 0

    class Last(DynamicLayer):  # type: ignore[misc]
        def update(self, key_states: Any, value_states: Any, *args: Any, **more: Any) -> tuple[Any, Any]:
            raise _Enough(key_states, value_states)

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return query_length, 0

    return ScatterLayer, Last


@final
class Prefill:
    """One prompt: its parts, and the ids of its question. After :meth:`run`: ``logits`` ``[v]`` of what comes next, and
    ``keys``/``values`` of each layer."""

    def __init__(self, store: chunk_store, parts: Sequence[Part], question: Sequence[int]) -> None:
        import torch

        self.store, self.parts, self.question = store, parts, tuple(question)
        self.ids = [i for p in parts for i in p.ids] + list(question)
        self.body = len(self.ids) - len(self.question)
        self.device = store.model.device
        self.all = torch.tensor(self.ids, device=self.device)
        self.layers: list[Any] = []
        self.logits: Any = None

    def places(self) -> Array:
        """Of the tokens that are computed, ascending."""
        mine = [p.chosen + p.start for p in self.parts]
        return np.concatenate([*mine, np.arange(self.body, len(self.ids))])

    def run(self) -> None:
        import torch

        places = self.places()
        at = torch.from_numpy(places).to(self.device)
        fresh = np.concatenate(
            [np.zeros(0, bool)]
            + [np.full(len(p.chosen), p.variant is None) for p in self.parts]
            + [np.zeros(len(self.question), bool)]
        )
        noted = torch.from_numpy(np.flatnonzero(fresh)).to(self.device) if fresh.any() else None
        held = Held(self.store, self.parts, len(self.ids))
        try:
            self.layers, self.logits = self._ran(held, at, len(self.ids) - len(places), places, noted)
        finally:
            held.close()
        self.read = held.read

    def _ran(self, held: Held, at: Any, before: int, places: Array, noted: Any) -> tuple[list[Any], Any]:
        import torch
        from transformers.cache_utils import Cache

        scatter, _ = _scatter_class()
        layers = [scatter(k, held, at, before, noted) for k in range(self.store.layers)]
        mask = None
        if places[0] != before:  # not the prompt's end alone
            mask = (torch.arange(len(self.ids), device=self.device) <= at[:, None])[None, None]
        with torch.no_grad(), attending(self.store.model):
            out = self.store.model(
                self.all[at][None], position_ids=at[None], attention_mask=mask, past_key_values=Cache(layers=layers),
                logits_to_keep=1,
            )  # fmt: skip
        return layers, out.logits[0, -1].float()

    def apart(self) -> Array:
        """How far the stored keys and values of the second layer are from those that all of the prompt before its question
        gives there, float ``[body]``: Euclidean distances of keys and of values, added. Costs the first layer."""
        import torch
        from transformers.cache_utils import Cache

        if self.store.layers < 2:
            return np.zeros(self.body)
        held = Held(self.store, self.parts, self.body)
        scatter, last = _scatter_class()
        at = torch.arange(self.body, device=self.device)
        nothing = Held(self.store, (), self.body)
        cache = Cache(layers=[scatter(0, nothing, at, 0, None), *(last() for _ in range(self.store.layers - 1))])
        try:
            with torch.no_grad(), attending(self.store.model):
                self.store.model(self.all[None, : self.body], past_key_values=cache, logits_to_keep=1)
        except _Enough as reached:
            there = held.layer(1)
            assert there is not None
            gaps = [(a - b)[0].float().square().sum((0, 2)).sqrt() for a, b in zip(reached.args, there, strict=True)]
            found: Array = (gaps[0] + gaps[1]).cpu().numpy()
            return found
        finally:
            held.close()
        raise AssertionError("a model of two layers gives keys and values to the second")

    def cache(self) -> Any:
        """The prompt's keys and values as transformers' own cache."""
        from transformers import DynamicCache

        made = DynamicCache(config=self.store.model.config)
        for number, layer in enumerate(self.layers):
            made.update(layer.keys, layer.values, number)
        return made

    def computed(self) -> list[tuple[Told, list[tuple[Any, Any]]]]:
        """Of each part that was computed wholly: what it looked at, and its keys and values."""
        found, row = [], 0
        for number, part in enumerate(self.parts):
            if part.variant is not None:
                continue
            rows = slice(row, row + len(part.ids))
            row = rows.stop
            attended = self._attended(self.parts[: number + 1], rows)
            pairs = [
                tuple(t[0, :, part.start : part.end].clone() for t in (layer.keys, layer.values))
                for layer in self.layers
            ]
            nbytes = sum(t.numel() * t.element_size() for pair in pairs for t in pair)
            told = Told(part.name, part.ids, part.start, part.exact, attended, nbytes, self.store.layers)
            found.append((told, pairs))
        return found

    def _attended(self, parts: Sequence[Part], rows: slice) -> Attended:
        """Attention of the last of ``parts``, whose queries are ``rows`` of those that were noted."""
        import torch

        mine = parts[-1]
        total = torch.zeros(len(mine.ids), mine.end, device=self.device)
        at = torch.arange(mine.start, mine.end, device=self.device)
        later = torch.arange(mine.end, device=self.device) > at[:, None]
        bias = torch.zeros(1, 1, *later.shape, device=self.device).masked_fill(later, float("-inf"))
        for layer in self.layers:
            found = weights(layer.queries[:, :, rows], layer.keys[:, :, : mine.end], bias, layer.scaling)
            total += found[0].mean(0) / len(self.layers)
        each = [total[:, p.start : p.end].sum(1) for p in parts]
        inter = torch.stack(each[:-1], 1) if len(each) > 1 else total.new_zeros(len(mine.ids), 0)
        names, lengths = tuple(p.name for p in parts[:-1]), tuple(len(p.ids) for p in parts[:-1])
        return Attended(names, lengths, inter.cpu().numpy(), each[-1].cpu().numpy())
