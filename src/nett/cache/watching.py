"""What comes to a model's attention modules, told to the layers of the cache that they are given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from nett.cache.rematerialising import Way, way_of
from nett.core.errors import Refused

if TYPE_CHECKING:
    from nett.cache.protocol import Tensor
else:
    Tensor = Any


@final
@dataclass(frozen=True)
class Coming:
    """hidden ``[b, q, d]``: what attention is given; stream ``[b, q, d]`` and norm: what the norm before it was given, and
    that norm; positions int ``[1 or b, q]``, None where the model rotates nothing; rotation: their cosines and sines, where
    attention is given them."""

    hidden: Tensor
    stream: Tensor | None
    norm: Any
    positions: Tensor | None
    way: Way
    rotation: tuple[Tensor, Tensor] | None = None


@contextmanager
def watching(model: Any) -> Iterator[None]:
    """Meanwhile each layer of a cache that has ``comes`` is told what comes to its attention module, before it is."""
    noted: dict[str, Any] = {}
    rotary = next(iter(rotaries(model)), None)

    def rotates(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        noted["positions"] = named.get("position_ids", args[1] if len(args) > 1 else None)

    def norms(module: Any, args: tuple[Any, ...], answer: Any) -> None:
        if args:
            noted["norm"] = module, args[0], answer

    def attends(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        known = named.get("past_key_values")
        if known is not None and getattr(known.layers[module.layer_idx], "done", False):
            return  # it asks for nothing any more
        way, hidden, cache = way_of(module, args, named, rotary)
        tell = getattr(cache.layers[module.layer_idx], "comes", None) if cache is not None else None
        if tell is None:
            return
        norm, stream, answer = noted.pop("norm", (None, None, None))
        if answer is not hidden:
            norm = stream = None
        tell(Coming(hidden, stream, norm, noted.get("positions"), way, named.get("position_embeddings")))

    handles = [m.register_forward_hook(norms) for m in model.modules() if "norm" in type(m).__name__.lower()]
    handles += [m.register_forward_pre_hook(attends, with_kwargs=True) for m in attention_modules(model)]
    if rotary is not None:
        handles.append(rotary.register_forward_pre_hook(rotates, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attention_modules(model: Any) -> list[Any]:
    """Modules that know their layer and give keys and values to a cache; the innermost of such."""
    import inspect

    def one(module: Any) -> bool:
        return isinstance(getattr(module, "layer_idx", None), int) and bool(
            {"past_key_values", "layer_past", "past_key_value"} & set(inspect.signature(module.forward).parameters)
        )

    found = [m for m in model.modules() if one(m)]
    return [m for m in found if not any(one(inner) for inner in m.modules() if inner is not m)]


def check_hidden(model: Any, where: str) -> None:
    """Refused where a model's attention modules or its one module of rotations cannot be found."""
    import inspect

    modules = attention_modules(model)
    count = int(model.config.get_text_config().num_hidden_layers)
    if sorted(m.layer_idx for m in modules) != list(range(count)):
        raise Refused(
            f"{type(model).__name__} has {count} layers, and attention modules of {len(modules)} were found",
            where=where,
        )
    if "position_embeddings" in inspect.signature(modules[0].forward).parameters and len(rotaries(model)) != 1:
        raise Refused(
            f"{type(model).__name__} has {len(rotaries(model))} modules of rotations: keys are rotated again by one",
            where=where,
        )


def rotaries(model: Any) -> list[Any]:
    return [m for m in model.modules() if "RotaryEmbedding" in type(m).__name__]
