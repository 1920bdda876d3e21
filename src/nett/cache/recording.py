"""A prompt run once, and what went into each layer's attention, so that every policy starts from the same cache without
running it again."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from nett.cache.attention import register
from nett.cache.layer import layer_class
from nett.cache.watching import watching

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nett.cache.policy import Policy


@final
@dataclass
class Recording:
    """Of each layer: what came to attention, keys and values as they came, queries, mask and scaling; and the logits at
    the prompt's end."""

    layers: list[tuple[Any, Any, Any, Any, Any, Any]] = field(default_factory=list)
    last: Any = None

    def cache(self, policy: Policy, model: Any) -> Any:
        """A cache of ``policy`` as it would be after this prompt."""
        made = policy.cache(model)
        for layer, (coming, keys, values, query, mask, scaling) in zip(made.layers, self.layers, strict=True):
            if policy.told:
                layer.comes(coming)
            layer.update(keys, values)
            if not policy.theirs:
                layer.attended(query, mask, scaling)
        return made


def record(model: Any, ids: Any) -> Recording:
    """Run a prompt ``[b, n]`` with a cache that keeps everything and notes what comes."""
    import torch
    from transformers.cache_utils import Cache

    found = Recording()
    base: Any = layer_class()

    class Noting(base):  # type: ignore[misc]
        given: Any = None

        def comes(self, coming: Any) -> None:
            self.given = coming

        def update(self, keys: Any, values: Any, *args: Any, **more: Any) -> Any:
            self.came = (self.given, keys, values)
            return super().update(keys, values)

        def fuses(self, query: Any, mask: Any) -> bool:
            return False

        def attended(self, query: Any, mask: Any, scaling: Any, noted: Any = None) -> None:
            found.layers.append((*self.came, query, mask, scaling))

    count = int(model.config.get_text_config().num_hidden_layers)
    with torch.no_grad(), attending(model), watching(model):
        cache = Cache(layers=[Noting(None, count) for _ in range(count)])
        found.last = model(ids, past_key_values=cache).logits[:, -1:]
    return found


@contextmanager
def attending(model: Any) -> Iterator[None]:
    """The model attends by this room's function meanwhile."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = register()
    try:
        yield
    finally:
        config._attn_implementation = before
