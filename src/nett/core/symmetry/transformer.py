"""The symmetry of a model of transformers, from its config and the names and shapes of its tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.checkpoint.json_text import text_part
from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.symmetry.groups import Group, Place, Refusal, Role, Symmetry
from nett.core.symmetry.layouts import IGNORED, LAYOUTS, Layout

_ROLES: dict[str, Role] = {"<": "producer", ">": "consumer", "=": "state"}
_UNITS = {"residual": "residual dimension", "mlp": "MLP neuron", "pooled": "pooled unit", "transform": "transform unit"}
_HEADS = ("lm_head", "embed_out", "classifier", "score", "qa_outputs", "cls", "vocab_projector", "pre_classifier")


@final
@dataclass(frozen=True)
class Heads:
    """Attention of a model: query heads, KV heads, dimensions a head, and how many of them positions rotate."""

    queries: int
    kv: int
    size: int
    rotated: int

    @property
    def each(self) -> int:
        """Query heads of a KV head."""
        return self.queries // self.kv


@final
@dataclass(frozen=True)
class _Lies:
    """A stretch of an axis: ``kind`` of units from ``offset`` on, ``stride`` from one head to the next."""

    tensor: str
    axis: int
    role: Role
    kind: str
    offset: int
    count: int
    stride: int

    def head(self, number: int, size: int) -> Array:
        return self.offset + number * self.stride + np.arange(size)

    def plain(self) -> Place:
        return Place(self.tensor, self.axis, self.offset + np.arange(self.count)[:, None], self.role)


def of_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Symmetry:
    """The permutation symmetry of a transformers model. Refused, by name, where a tensor of it has no known place.

    Not proved yet: see :func:`nett.core.symmetry.shrunken.prove_config`.
    """
    kind = str(config.get("model_type", "no model_type"))
    layout = layout_of(kind, shapes)
    heads = heads_of(config, layout)
    headless, why = _headless(config, shapes)
    lies: dict[tuple[str, str], list[_Lies]] = defaultdict(list)
    for name, shape in shapes.items():
        found = layout.match(name)
        if found is not None:
            for one in _stretches(name, shape, found[1], layout, heads, kind):
                what = _meaning(one.kind, config, shapes)
                lies[found[0] if what in ("mlp", *"qkvo") else "", what].append(one)
    groups: list[Group] = []
    refused: list[Refusal] = []
    for layer, what in list(lies):
        places = lies[layer, what]
        if what == "mlp":
            groups.append(Group(f"{layer}.mlp", _UNITS["mlp"], tuple(one.plain() for one in places)))
        elif what == "o":
            groups += _attention(layer, {k: lies.get((layer, k), []) for k in "qkvo"}, heads)
        elif what in ("residual", "pooled", "transform"):
            ends = headless if what == "residual" else not any(p.role == "consumer" for p in places)
            if ends:
                why_here = why if what == "residual" else "they are an output of the model"
                refused.append(Refusal(what, why_here))
            else:
                groups.append(Group(what, _UNITS[what], tuple(one.plain() for one in places)))
    return Symmetry(tuple(groups), dict(shapes), tuple(refused), aliases=_aliases(config, shapes))


def heads_of(config: Mapping[str, Any], layout: Layout) -> Heads:
    """Heads from the config under any of the names that configs use."""
    text = text_part(dict(config))

    def first(*names: str) -> Any:
        return next((text[n] for n in names if text.get(n) is not None), None)

    queries = first("num_attention_heads", "n_head", "n_heads")
    hidden = first("hidden_size", "n_embd", "dim", "d_model")
    if not isinstance(queries, int) or not isinstance(hidden, int):
        raise Refused("config.json tells neither the number of attention heads nor the hidden size")
    size = first("head_dim") or hidden // queries
    rope = text.get("rope_parameters") or {}
    fraction = first("partial_rotary_factor", "rotary_pct") or (
        rope.get("partial_rotary_factor") if isinstance(rope, dict) else None
    )
    return Heads(
        queries, first("num_key_value_heads") or queries, size, int(size * (fraction or 1.0)) if layout.rotary else 0
    )


def layout_of(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """The layout that knows every tensor."""
    names = [n for n in shapes if not IGNORED.search(n)]
    unknown = {one.name: [n for n in names if one.match(n) is None] for one in LAYOUTS}
    best = min(LAYOUTS, key=lambda one: len(unknown[one.name]))
    if unknown[best.name]:
        missing = unknown[best.name]
        raise Refused(
            f"the symmetries of the family {kind!r} are not known: it is nearest to a {best.name}, but nothing is known"
            f" of {len(missing)} of its {len(names)} tensors, the first being {missing[0]!r}",
            hint="Known: decoders like Llama, GPT-NeoX, GPT-2, OPT; encoders like BERT, ViT, DistilBERT. "
            "From Python, nett.core.symmetry.of_module(module, example) derives them from a torch module's code.",
        )
    return best


def _headless(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[bool, str]:
    named = [str(a) for a in config.get("architectures") or []]
    why = "the residual stream is this model's output, since it has no head; its other groups are free"
    if any(n.split(".")[0] in _HEADS for n in shapes):
        return False, why
    return not named or (named[0].endswith("Model") and not named[0].endswith("HeadModel")), why


def _meaning(kind: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What ``transform`` and ``classified`` units are in this model."""
    if kind == "transform" and config.get("tie_word_embeddings", True):
        return "residual"  # the embedding is the decoder's matrix
    if kind == "classified":
        pooled = any("pooler.dense" in n or n.startswith("pre_classifier") for n in shapes)
        return "pooled" if pooled else "residual"
    return kind


def _aliases(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    embedding = next(
        (n for n in shapes if n.endswith(("embed_tokens.weight", "wte.weight", "word_embeddings.weight"))), ""
    )
    tops = ("lm_head.weight", "decoder.weight", "vocab_projector.weight")
    if not config.get("tie_word_embeddings", True):
        return {}
    found = {n: embedding for n in shapes if n.endswith(tops) and embedding and shapes[n] == shapes[embedding]}
    found |= {n: "lm_head.bias" for n in shapes if n == "lm_head.decoder.bias" and "lm_head.bias" in shapes}
    twin = "cls.predictions.decoder.bias"
    return found | {n: "cls.predictions.bias" for n in shapes if n == twin and "cls.predictions.bias" in shapes}


def _stretches(name: str, shape: tuple[int, ...], axes: str, layout: Layout, heads: Heads, kind: str) -> list[_Lies]:
    """What lies along the axes of a tensor; Refused where that does not fit its shape."""
    found = []
    words = axes.split()
    if len(words) != len(shape):
        raise Refused(f"{kind}: tensor {name!r} has shape {list(shape)}, where {len(words)} dimensions are known")
    for axis, word in enumerate(words):
        if word == "-":
            continue
        role, kinds = _ROLES[word[0]], word[1:].split("|")
        if kinds == ["qkv"]:
            step = 3 * heads.size
            found += [_Lies(name, axis, role, k, i * heads.size, 0, step) for i, k in enumerate("qkv")]
            _fits(name, axis, shape, heads.queries * step, kind)
            continue
        if kinds in (["q"], ["k"]) and role == "state" and shape[axis] == heads.size:
            continue  # one weight a dimension for all heads: they may change places, their insides not
        sizes = {"q": heads.queries * heads.size, "o": heads.queries * heads.size}
        sizes |= dict.fromkeys("kv", heads.kv * heads.size)
        known = sum(sizes.get(k, 0) for k in kinds)
        free = [k for k in kinds if k not in sizes]
        each = (shape[axis] - known) // len(free) if free else 0
        _fits(name, axis, shape, known + each * len(free), kind)
        offset = 0
        for k in kinds:
            size = sizes.get(k, each)
            found.append(_Lies(name, axis, role, k, offset, size, heads.size))
            offset += size
    return found


def _fits(name: str, axis: int, shape: tuple[int, ...], expected: int, kind: str) -> None:
    if shape[axis] != expected:
        raise Refused(
            f"{kind}: tensor {name!r} has {shape[axis]} along axis {axis}, but its config makes that {expected}",
            hint="config.json and tensors are not of one model.",
        )


def _attention(layer: str, lies: Mapping[str, list[_Lies]], heads: Heads) -> list[Group]:
    """The groups of one attention, the inside of a head before the heads."""
    size, each = heads.size, heads.each
    whole = "head" if each == 1 else "KV head with its query heads"
    parent = f"{layer}.heads"

    def place(one: _Lies, index: Array) -> Place:
        return Place(one.tensor, one.axis, index, one.role)

    def queries(one: _Lies, j: int) -> Array:
        """``[each, size]``: positions of the query heads of KV head ``j``."""
        return np.stack([one.head(j * each + r, size) for r in range(each)])

    groups = []
    for j in range(heads.kv):
        values = [place(one, one.head(j, size)[:, None]) for one in lies["v"]]
        values += [place(one, queries(one, j).T) for one in lies["o"]]
        groups.append(Group(f"{layer}.heads.{j}.value", "value dimension", tuple(values), (), parent, j))
        shared = any(one.role == "state" for k in "qk" for one in lies[k])
        if size - heads.rotated > 1 and not shared:
            free = slice(heads.rotated, None)
            inside = [place(one, queries(one, j).T[free]) for one in lies["q"]]
            inside += [place(one, one.head(j, size)[free, None]) for one in lies["k"]]
            groups.append(Group(f"{layer}.heads.{j}.key", "query and key dimension", tuple(inside), (), parent, j))
        if each > 1:
            several = [place(one, queries(one, j)) for k in "qo" for one in lies[k]]
            groups.append(Group(f"{layer}.heads.{j}.query", "query head", tuple(several), (), parent, j))
    if heads.kv > 1:
        places = [place(one, np.stack([queries(one, j).reshape(-1) for j in range(heads.kv)])) for one in lies["q"]]
        for k in "kv":
            places += [place(one, np.stack([one.head(j, size) for j in range(heads.kv)])) for one in lies[k]]
        places += [place(one, np.stack([queries(one, j).reshape(-1) for j in range(heads.kv)])) for one in lies["o"]]
        groups.append(Group(parent, whole, tuple(places)))
    return groups
