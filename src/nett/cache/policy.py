"""A policy with its parameters and its budget, ready to be put on a model."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, final
from weakref import WeakKeyDictionary

from nett.cache.attention import register
from nett.cache.budget import Budget
from nett.cache.foreign import counted
from nett.cache.hidden import Tokens, hidden_layer_class
from nett.cache.layer import layer_class
from nett.cache.protocol import STATISTICS
from nett.cache.watching import check_hidden, watching
from nett.core.errors import Refused, UsageError
from nett.core.registry import Card


@final
class Policy:
    """How a cache is kept within a budget.

    Args:
        budget: a share of the tokens, tokens or bytes of all layers.
        every: tokens that come between two times that the cache is made smaller; 0 for a sixteenth of the budget.
        when: ``always``, or ``prefill``: once, after the prompt.
    """

    def __init__(
        self,
        card: Card,
        parameters: Mapping[str, Any],
        *,
        budget: str | float = 1.0,
        every: int = 0,
        when: str = "always",
    ) -> None:
        if every < 0:
            raise UsageError(f"every = {every} is out of range: 0 <= every", where=card.key)
        if when not in ("always", "prefill"):
            raise UsageError(f"when = {when!r} is not one of always, prefill", where=card.key)
        self.card, self.parameters = card, dict(parameters)
        self.budget, self.every, self.when = Budget.of(budget), every, when
        self.kernel, self.operands = card.kernel(), card.operands
        self.watches = tuple(o for o in card.operands if o in STATISTICS)
        self.expects = bool({"expected", "covariance"} & set(card.operands))
        self.looks_back = bool({"recent", "queries"} & set(self.watches))
        module = importlib.import_module(card.module)
        self.window = int(getattr(module, "RECENT", 0)) or 1
        self.theirs = card.operands == ("config",)  # a cache of transformers' own
        self.codes = "keep" not in card.operands
        if self.codes and self.budget != Budget(1.0, "share"):
            raise UsageError(
                "holds all tokens, as codes: its bits decide how many bytes they take",
                where=card.key,
                hint="Give bits, and no budget.",
            )
        self.remakes = "hidden" in card.operands  # holds what keys and values are made of
        self.told = self.remakes or self.expects  # what comes to attention modules
        self.bases: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # of attention modules
        self.counts_sizes = "sizes" in card.operands and bool(parameters.get("size_bias", True))

    def cache(self, model: Any) -> Any:
        """An empty cache for ``model``, to be given to it as ``past_key_values`` while the policy is on it."""
        from transformers.cache_utils import Cache

        config = model.config.get_text_config()
        check_model(model, self.card.key)
        count = int(config.num_hidden_layers)
        if self.theirs:
            theirs = counted(self.kernel(model.config, **self.parameters))
            theirs.nett_policy = self
            return theirs
        if self.remakes:
            tokens = Tokens()
            layers = [hidden_layer_class()(self, count, i, tokens) for i in range(count)]
        else:
            left = left_alone(str(self.parameters.get("skip_layers", "")), count, self.card.key)
            layers = [layer_class()(self, count, index in left, len(left)) for index in range(count)]
        made = Cache(layers=layers)
        made.nett_policy = self
        return made

    @contextmanager
    def on(self, model: Any) -> Iterator[Any]:
        """``model.generate(…)`` and ``model(…)`` use caches of this policy meanwhile, unless they are given one."""
        check_model(model, self.card.key)
        if self.told:
            check_hidden(model, self.card.key)
            self.bases.clear()
        config = model.config.get_text_config()
        before, own = config._attn_implementation, model.__dict__.get("generate")
        generate = model.generate

        def generating(*args: Any, **named: Any) -> Any:
            if named.get("past_key_values") is None and named.get("use_cache", True):
                named["past_key_values"] = self.cache(model)
            return generate(*args, **named)

        def calling(_: Any, args: Any, named: dict[str, Any]) -> Any:
            wanted = named.get("use_cache")
            if named.get("past_key_values") is None and (config.use_cache if wanted is None else wanted):
                named["past_key_values"] = self.cache(model)
            return args, named

        handle = model.register_forward_pre_hook(calling, with_kwargs=True)
        model.generate = generating
        config._attn_implementation = register()
        try:
            with watching(model) if self.told else nullcontext():
                yield model
        finally:
            config._attn_implementation = before
            handle.remove()
            if own is None:
                del model.generate
            else:
                model.generate = own

    def save(self, cache: Any, model: Any, file: str | Path, *, ids: Any = None) -> None:
        """Write a cache of this policy as safetensors, with a hash of its model, to be used again; ``ids`` of its tokens
        beside it. See :mod:`nett.cache.saving`."""
        from nett.cache.saving import save

        save(self, cache, model, Path(file), ids)

    def load(self, file: str | Path, model: Any) -> Any:
        """A saved cache, which goes on bit for bit as it would have; Refused for one of another model or policy."""
        from nett.cache.saving import load

        return load(self, model, Path(file))

    # -- what layers ask ----------------------------------------------------------------------------------------

    def slots(self, layer: Any, seen: int) -> int:
        """Slots that a layer may hold after ``seen`` tokens."""
        rows, heads = layer.keys.shape[:2]
        wide = (layer.keys.shape[-1] + layer.values.shape[-1]) * layer.keys.element_size()
        carried = ("mass" in self.watches) + ("reach" in self.watches) + self.looks_back + self.counts_sizes
        if layer.left:
            return seen
        asked = sum(t.numel() * t.element_size() for t in (layer.queries, *(layer.asked or ())) if t is not None)
        most = self.budget.slots(seen, rows * heads * (wide + 4 * carried) * layer.layers, asked * layer.layers)
        if not layer.left_layers or most >= seen:
            return most
        others = layer.layers - layer.left_layers  # which hold so many fewer
        slots = (most * layer.layers - seen * layer.left_layers) // others if others else 0
        if slots < 1:
            raise Refused(
                f"a budget of {self.budget} leaves nothing for {others} layers where {layer.left_layers} hold all tokens",
                where=self.card.key,
                hint="A larger budget, or fewer --skip-layers.",
            )
        return slots

    def target(self, layer: Any, seen: int) -> int:
        """Slots that stay when it is made smaller: after a prompt what the budget allows, else room for what comes."""
        most = self.slots(layer, seen)
        if layer.coming > 1:
            return most
        return max(1, most + 1 - (self.every or max(1, most // 16)))

    def due(self, layer: Any, held: int, seen: int) -> bool:
        """Whether a row that holds so many slots is to be made smaller now."""
        if layer.coming == 1 and self.when == "prefill":
            return False
        return held > self.slots(layer, seen)


def left_alone(named: str, count: int, where: str) -> frozenset[int]:
    """Layers by their numbers, separated by commas; -1 is the last."""
    found = set()
    for word in filter(None, (w.strip() for w in named.split(","))):
        if not re.fullmatch(r"-?\d+", word) or not -count <= int(word) < count:
            raise UsageError(
                f"skip_layers = {named!r}: {word!r} is no layer of {count}", where=where, hint="For example 0,1,-1."
            )
        found.add(int(word) % count)
    return frozenset(found)


def check_model(model: Any, where: str) -> None:
    """Refused for models whose attention is not one that every token is seen in, or that cannot be told how to attend."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or (
        getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    ):
        raise Refused(
            f"{type(model).__name__} has layers of other kinds ({', '.join(sorted(kinds))}; sliding window"
            f" {getattr(config, 'sliding_window', None)}): policies hold what full attention sees",
            where=where,
        )
    if not getattr(model, "_supports_attention_backend", False):
        raise Refused(f"{type(model).__name__} cannot be told how to attend (no attention interface)", where=where)


def ledger(cache: Any) -> dict[str, Any]:
    """Bytes that a cache of this room really holds, against those of the full cache: numbers, sizes, statistics, marks."""
    layers = cache.layers
    held = sum(layer.nbytes for layer in layers)
    full = sum(layer.full_nbytes for layer in layers)
    return {
        "bytes": held,
        "full_bytes": full,
        "share": held / full if full else 1.0,
        "slots": [getattr(layer, "slots", layer.held) for layer in layers],
        "seen": layers[0].seen,
    }
