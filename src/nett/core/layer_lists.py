"""Configs of models whose layers were taken from others: their number, and whatever is told layer by layer.

No family is known here. The number of layers is any entry called as it usually is that equals the number there was;
what is told layer by layer is any list (or text of one letter a layer) as long as there were layers, and any list of
layers' numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COUNTS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers",
)  # fmt: skip
_NUMBERS = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "attn_layer_indices", "cross_attention_layers",
            "global_attn_idx", "attn_layers", "interleave_moe_layers")  # fmt: skip

Pick = tuple[Mapping[str, Any], int, int]  # the config that a layer comes with, the layer's number there, of how many


def part_of(config: Mapping[str, Any], stack: str) -> tuple[str, ...]:
    """The keys that lead to what a config says of a stack: ``vision_config`` for ``visual.blocks``, else
    ``text_config`` where there is one, else the config itself."""
    words = [key.removesuffix("_config") for key, value in config.items() if key.endswith("_config") and value]
    for word in words:
        inner = config[f"{word}_config"]
        if word != "text" and isinstance(inner, dict) and any(k in inner for k in COUNTS) and word[:3] in stack:
            return (f"{word}_config",)
    return ("text_config",) if isinstance(config.get("text_config"), dict) else ()


def recut(config: Mapping[str, Any], picks: Sequence[Pick], stack: str = "") -> tuple[dict[str, Any], list[str]]:
    """``config`` with the number of layers and the lists of a model that is made of the layers ``picks``, and what a
    reader should know of it."""
    path = part_of(config, stack)
    part = dict(_inner(config, path))
    had = _count(part, stack)
    keys = [k for k in _count_keys(part, stack) if part[k] == had]
    notes = [] if keys else ["config.json does not say how many layers there are; see to it before loading"]
    for key in keys:
        part[key] = len(picks)
    inner = [(_inner(c, part_of(c, stack)), number, total) for c, number, total in picks]
    for key, value in part.items():
        told = _told(key, value, had, inner)
        if told is not None and told != value:
            part[key] = told
            notes.append(f"config.json: {key} is that of the layers that were taken")
    made = dict(config)
    if path:
        made[path[0]] = part
    else:
        made = part
    return made, notes


def _inner(config: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    return config[path[0]] if path else config


def _count_keys(part: Mapping[str, Any], stack: str) -> list[str]:
    """The keys that may hold a stack's number of layers; of encoder and decoder, the stack's own."""
    keys = [k for k in COUNTS if type(part.get(k)) is int]
    decoder = any("decoder" in k for k in keys)
    if "decoder" in stack.split(".") and decoder:
        return [k for k in keys if "decoder" in k]
    if "encoder" in stack.split(".") and decoder:
        return [k for k in keys if "decoder" not in k]
    return keys


def _count(part: Mapping[str, Any], stack: str) -> int | None:
    return next((int(part[k]) for k in _count_keys(part, stack)), None)


def _told(key: str, value: Any, had: int | None, picks: Sequence[Pick]) -> Any:
    """What ``key`` says of the layers that were picked; None where it does not speak of layers."""
    if had is None:
        return None
    if isinstance(value, list) and value and _are_numbers(key, value, had):
        return [new for new, (config, number, _) in enumerate(picks) if number in (config.get(key) or [])]
    letters = isinstance(value, str) and "pattern" in key
    if not (letters or (isinstance(value, list) and _named(key))) or len(value) != had:
        return None
    taken = []
    for config, number, total in picks:
        own = config.get(key)
        known = own if isinstance(own, list | str) and len(own) == total else value
        if number >= len(known):
            return None
        taken.append(known[number])
    return "".join(taken) if letters else taken


def _named(key: str) -> bool:
    return any(word in key for word in ("layer", "block", "pattern", "types"))


def _are_numbers(key: str, value: list[Any], had: int) -> bool:
    """Whether a list holds numbers of layers: it is called so, or it could not be one entry a layer."""
    if not all(type(v) is int and 0 <= v < had for v in value) or sorted(set(value)) != value:
        return False
    return key in _NUMBERS or (len(value) != had and key.endswith(("_layers", "_idxs", "_indices", "_layer_ids")))
