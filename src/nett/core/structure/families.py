"""What transformers' modules and configs keep of their widths beside the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from nett.core.errors import Refused
from nett.core.symmetry.groups import Group

HEADS = ("head", "KV head with its query heads")  # units
NEURON = "MLP neuron"
_COUNTS = ("num_heads", "num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "num_kv_heads")
_WIDTHS = ("split_size", "all_head_size")


def is_transformers(module: Any) -> bool:
    """Whether the module is a model of transformers, with a config that says its family."""
    config = getattr(module, "config", None)
    return hasattr(config, "to_dict") and isinstance(getattr(config, "model_type", None), str)


def tell(module: Any, groups: Sequence[Group], sizes: Mapping[str, tuple[int, int]]) -> None:
    """Set what attention layers keep of the number of their heads; ``sizes``: group -> (units before, units now)."""
    layers = dict(module.named_modules())
    for group in groups:
        before, now = sizes[group.name]
        if group.unit not in HEADS:
            continue
        for owner in {p.tensor.rsplit(".", 2)[0] for p in group.having("producer")}:
            layer = layers[owner]
            for name in (*_COUNTS, *_WIDTHS):
                count = getattr(layer, name, None)
                if isinstance(count, int) and not isinstance(count, bool):
                    if count * now % before:
                        raise Refused(f"{name} = {count} cannot be {now}/{before} of what it is", where=owner)
                    setattr(layer, name, count * now // before)


def loads_from_config(module: Any) -> str | None:
    """Say the widths in the config of a model of transformers, if it can say them; then the written folder loads as it is.

    The config is changed only where a model made from it has the very shapes of ``module``. Returns None then, else
    the reason why not.
    """
    import torch

    shapes = {n: tuple(t.shape) for n, t in module.state_dict().items()}
    config = copy.deepcopy(module.config)
    for changed in _candidates(config, shapes):
        for name, value in changed.items():
            setattr(config, name, value)
    try:
        with torch.device("meta"):
            made = type(module)(config)
    except Exception as error:  # whatever the family's own code says to such a config
        return f"its family makes no model of such widths: {str(error).splitlines()[0] if str(error) else error}"
    for name, tensor in made.state_dict().items():
        if tuple(tensor.shape) != shapes.get(name):
            has = list(shapes[name]) if name in shapes else "nowhere"
            return f"its config cannot say these widths: {name!r} is {has} and would be {list(tensor.shape)}"
    for name, value in vars(config).items():
        setattr(module.config, name, value)
    return None


def _candidates(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, int]]:
    """What the first layer's tensors say of the numbers that configs have."""
    from nett.core.symmetry.layouts import IGNORED
    from nett.core.symmetry.transformer import heads_of, layout_of

    layout = layout_of(config.model_type, {n: s for n, s in shapes.items() if not IGNORED.search(n)})
    heads = heads_of(config.to_dict(), layout)
    found = list[dict[str, int]]()

    def width(kind: str) -> int | None:
        for name, shape in shapes.items():
            match = layout.match(name)
            words = match[1].split() if match else []
            for axis, word in enumerate(words):
                stretches = word[1:].split("|")
                if word[0] == "<" and set(stretches) == {kind} and len(shape) > 1:
                    return shape[axis] // len(stretches)
        return None

    neurons, queries, keys = width("mlp"), width("q"), width("k")
    mapped = getattr(config, "attribute_map", None) or {}

    def known(*names: str) -> str | None:
        return next((n for n in names if hasattr(config, mapped.get(n, n))), None)

    if neurons and (name := known("intermediate_size", "n_inner", "ffn_dim", "hidden_dim")):
        found.append({name: neurons})
    if queries and keys and queries % heads.size == 0 and (name := known("num_attention_heads", "n_head")):
        found.append({name: queries // heads.size})
        if other := known("num_key_value_heads"):
            found.append({other: keys // heads.size})
        if known("head_dim"):
            found.append({"head_dim": heads.size})
    return found
